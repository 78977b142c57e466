"""Bad recipes, and training runs that cannot start or resume."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from medsam_app.commands.pretrain import pretrain
from medsam_app.errors import ModelError, SettingsError
from tests.support.bad_kit import case, text

SETTINGS = {"steps": 2, "shares": {"synthetic": 1}, "windows": [[16, 1]], "learning_rate": 0.001}


def start(folder: Path, *, data: Path | None = None, weights: Path | None = None, **more: object) -> None:
    """Run the command with the recipe above and some changed settings."""
    recipe = text(folder / "recipe.json", json.dumps(SETTINGS | more))
    pretrain(recipe, out=folder / "run", data=data, weights=weights, device="cpu", tensorboard=False)


@case("a recipe that does not exist", SettingsError)
def _(folder):
    pretrain(
        folder / "recipe.json", out=folder / "run", data=None, weights=None, device="cpu", tensorboard=False
    )


@case("a recipe with a setting that does not exist", SettingsError)
def _(folder):
    start(folder, learning_rat=0.1)


@case("a recipe with a share that does not exist", SettingsError)
def _(folder):
    start(folder, shares={"syntetic": 1})


@case("a recipe with hours and steps", SettingsError)
def _(folder):
    start(folder, hours=1)


@case("a recipe with windows of the wrong size", SettingsError)
def _(folder):
    start(folder, windows=[[20, 1]])


@case("training on labelled volumes without --data", SettingsError)
def _(folder):
    start(folder, shares={"real": 1})


@case("training on a folder that does not exist")
def _(folder):
    start(folder, data=folder / "data")


@case("training on a folder without a manifest")
def _(folder):
    start(folder, shares={"real": 1}, data=folder)


@case("training on head label maps that do not exist")
def _(folder):
    start(folder, shares={"heads": 1}, data=folder)


@case("training from weights that do not exist", ModelError)
def _(folder):
    start(folder, weights=folder / "earlier.safetensors")


@case("training from weights of another model", ModelError)
def _(folder):
    save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    start(folder, weights=folder / "other.safetensors")


@case("training one component without weights for the others", SettingsError)
def _(folder):
    start(folder, only="decoder.quality")


@case("resuming a run of another recipe", SettingsError)
def _(folder):
    (folder / "run").mkdir()
    text(folder / "run" / "recipe.json", json.dumps(SETTINGS | {"learning_rate": 0.002}))
    start(folder)


@case("resuming a damaged run", ModelError)
def _(folder):
    (folder / "run").mkdir()
    text(folder / "run" / "state.safetensors", '{"step": 1, "seconds": 2.0}')
    start(folder)
