"""What each part of the training is worth, at equal processor time: python benchmarks/ablation.py FOLDER

Every variant trains from fresh weights by the recipe of the embedded model, on windows of 32 voxels alone,
for so many minutes of one core, and is then measured on fixed windows: synthetic ones, and ones around
objects of `dev` cases, five rounds of careful clicks. Processor time is counted, not time on the clock, so
that several variants may run beside each other: `--only NAME` runs one, `--csv FILE` gathers their rows. With
`--weights FILE` these weights, which took so many minutes, are measured on the same windows instead.

Recipes: without one source of windows, or with the other optimizer. Decoders: without the random walker,
without the clicks' contest, with a prior over the prompt channels that is learned from zero, with prompts as
tokens alone (none of the three, nor the channels themselves), without the mask of the round before, without
attention between tokens and window.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsam_app.models.encoder import Embedding
from medsam_app.models.load import load_model
from medsam_app.models.prompt_encoder import PromptEncoder, RoiPrompts
from medsam_app.models.sam3d import Sam3D
from medsam_app.pretraining.recipe import Recipe, read_recipe
from medsam_app.pretraining.trainer import PretrainTrainer
from medsam_app.pretraining.validation import Validation

RECIPE = Path(__file__).parent.parent / "models" / "recipes" / "sam3d_tiny.json"
#: Of the table: after the kind of window, mean Dice by round.
COLUMNS = ("variant", "minutes", "seed", "steps", "windows", "1", "2", "3", "4", "5")
#: Muon's steps are all of one size: it takes a smaller learning rate.
MUON_RATE = 0.0005


class WithoutWalker(PromptEncoder):
    """No evidence and no channel of the random walker."""

    def _walk(self, embedding: Embedding, prompts: RoiPrompts, box: Tensor | None) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(embedding.image[:, :1])
        return nothing, nothing[:, :, :1, :1, :1]


class WithoutContest(PromptEncoder):
    """Clicks do not vie for the voxels between them."""

    def contest(self, embedding: Embedding, prompts: RoiPrompts) -> Tensor:
        return torch.zeros_like(embedding.image[:, :1])


class TokensAlone(WithoutContest):
    """Prompts as tokens, nothing painted; the maps are made all the same, and cost their time."""

    def dense(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        channels, evidence = super().dense(embedding, replace(prompts, seeds=None))
        return torch.zeros_like(channels), torch.zeros_like(evidence)


class Forgetful(PromptEncoder):
    """The mask of the round before is not shown."""

    def dense(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        return super().dense(embedding, replace(prompts, mask=None))


def prompts_by(kind: type[PromptEncoder]) -> Callable[[Sam3D], None]:
    def change(model: Sam3D) -> None:
        # The optimizers hold its parameters already: the object stays, what it does changes.
        model.decoder.prompt_encoder.__class__ = kind  # type: ignore[assignment]

    return change


def without_prior(model: Sam3D) -> None:
    """The prior begins at zero; training may bring it back."""
    prior: Any = model.decoder.prior
    with torch.no_grad():
        prior.weight.zero_()
        prior.bias.zero_()


def without_attention(model: Sam3D) -> None:
    model.decoder.blocks = nn.ModuleList()


@dataclass(frozen=True)
class Variant:
    """What differs: settings of the recipe, and what is done to the fresh model."""

    settings: dict[str, Any]
    change: Callable[[Sam3D], None] = lambda model: None


def variants(recipe: Recipe) -> dict[str, Variant]:
    found = {"everything": Variant({})}
    for source in recipe.shares:
        rest = {name: share for name, share in recipe.shares.items() if name != source}
        found[f"without {source}"] = Variant({"shares": rest})
    found["Muon"] = Variant({"optimizer": "muon", "learning_rate": MUON_RATE})
    found["without walker"] = Variant({}, prompts_by(WithoutWalker))
    found["without contest"] = Variant({}, prompts_by(WithoutContest))
    found["without prior"] = Variant({}, without_prior)
    found["tokens alone"] = Variant({}, prompts_by(TokensAlone))
    found["without last mask"] = Variant({}, prompts_by(Forgetful))
    found["without attention"] = Variant({}, without_attention)
    return found


def short(recipe: Recipe, variant: Variant, minutes: float) -> Recipe:
    """The recipe of a variant's training."""
    settings: dict[str, Any] = {"hours": minutes / 60, "windows": [(32, 8)], "rounds": (2, 4)}
    settings |= {"warmup_steps": 20, "ema": 0.98, "validation_windows": 96}
    return Recipe.model_validate(recipe.model_dump(exclude_unset=True) | settings | variant.settings)


def trained(variant: Variant, recipe: Recipe, folder: Path) -> PretrainTrainer:
    """A trainer that has trained for the recipe's hours of processor time."""
    with tempfile.TemporaryDirectory() as out:
        trainer = PretrainTrainer(recipe, folder, Path(out), torch.device("cpu"))
    variant.change(trainer.model)
    trainer.average = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    while trainer.done() < 1:
        began = time.process_time()
        trainer.train_step()
        trainer.seconds += time.process_time() - began
    return trainer


def tell(row: list[Any], scores: dict[str, list[float]], table: Path | None) -> None:
    """Print mean Dice by kind of window after each round, and add them to a table."""
    for kind in reversed(scores):  # real windows first, where the folder has any
        print(f"{row[0]:<20}{row[3]:>5} steps  {kind:<10}", end="")
        print(" / ".join(f"{dice:.3f}" for dice in scores[kind]), flush=True)
        if table is not None:
            fresh = not table.exists()
            with table.open("a", newline="") as file:
                lines = csv.writer(file, lineterminator="\n")
                if fresh:
                    lines.writerow(COLUMNS)
                lines.writerow([*row, kind, *(f"{dice:.4f}" for dice in scores[kind])])


def main() -> None:
    recipe = read_recipe(RECIPE)
    names = variants(recipe)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="labelled volumes, with a manifest.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="of one core, for each variant")
    parser.add_argument("--only", action="append", choices=list(names), help="repeatable")
    parser.add_argument("--weights", type=Path, help="of the embedded model; nothing is trained")
    parser.add_argument("--seed", type=int, default=recipe.seed)
    parser.add_argument("--csv", type=Path, help="rows are added to this table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipe.model_copy(update={"seed": options.seed})
    device = torch.device("cpu")
    if options.weights is not None:
        fixed = Validation(short(recipe, Variant({}), options.minutes), options.folder)
        model = load_model(weights=options.weights)
        tell([options.weights.stem, options.minutes, 0, 0], fixed.measure(model, device) or {}, options.csv)
        return
    for name in options.only or names:
        own = short(recipe, names[name], options.minutes)
        trainer = trained(names[name], own, options.folder)
        found = Validation(own, options.folder).measure(trainer.averaged(), device)
        tell([name, options.minutes, options.seed, trainer.step], found or {}, options.csv)


if __name__ == "__main__":
    main()
