"""Ablations of the training at equal processor time: python benchmarks/ablation.py FOLDER

Every variant trains from random weights with the recipe of the embedded model, only on windows of 32 voxels,
for `--minutes` of one core. It is then measured with five rounds of careful clicks on fixed windows:
synthetic ones, and ones around objects of `dev` cases. Processor time is counted instead of wall time, so
that several variants may run at the same time: `--only NAME` runs one, `--csv FILE` collects their rows.
`--weights FILE` measures existing weights, trained for `--minutes`, on the same windows instead.

Variants of the recipe: without one source of windows, or with the other optimizer. Variants of the decoder:
without the random walker, without the contest of clicks, with a prior over the prompt channels that starts at
zero, with prompts only as tokens (without these three and without the channels), without the mask of the
previous round, without attention between tokens and window.
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
#: Columns of the table after the kind of window: mean Dice by round.
COLUMNS = ("variant", "minutes", "seed", "steps", "windows", "1", "2", "3", "4", "5")
#: Muon's steps all have the same size, so it needs a smaller learning rate.
MUON_RATE = 0.0005


class WithoutWalker(PromptEncoder):
    """Decoder without the evidence and the channel of the random walker."""

    def _walk(self, embedding: Embedding, prompts: RoiPrompts, box: Tensor | None) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(embedding.image[:, :1])
        return nothing, nothing[:, :, :1, :1, :1]


class WithoutContest(PromptEncoder):
    """Decoder in which clicks do not compete for the voxels between them."""

    def contest(self, embedding: Embedding, prompts: RoiPrompts) -> Tensor:
        return torch.zeros_like(embedding.image[:, :1])


class TokensAlone(WithoutContest):
    """Decoder with prompts only as tokens; the maps are still computed, which costs time."""

    def dense(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        channels, evidence = super().dense(embedding, replace(prompts, seeds=None))
        return torch.zeros_like(channels), torch.zeros_like(evidence)


class Forgetful(PromptEncoder):
    """Decoder without the mask of the previous round."""

    def dense(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        return super().dense(embedding, replace(prompts, mask=None))


def prompts_by(kind: type[PromptEncoder]) -> Callable[[Sam3D], None]:
    def change(model: Sam3D) -> None:
        # Change the class in place, since the optimizers already hold the parameters of the object.
        model.decoder.prompt_encoder.__class__ = kind  # type: ignore[assignment]

    return change


def without_prior(model: Sam3D) -> None:
    """Set the prior to zero; training may learn it again."""
    prior: Any = model.decoder.prior
    with torch.no_grad():
        prior.weight.zero_()
        prior.bias.zero_()


def without_attention(model: Sam3D) -> None:
    model.decoder.blocks = nn.ModuleList()


@dataclass(frozen=True)
class Variant:
    """Difference from the full training: settings of the recipe, and a change of the untrained model."""

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
    """Return the recipe of a variant."""
    settings: dict[str, Any] = {"hours": minutes / 60, "windows": [(32, 8)], "rounds": (2, 4)}
    settings |= {"warmup_steps": 20, "ema": 0.98, "validation_windows": 96}
    return Recipe.model_validate(recipe.model_dump(exclude_unset=True) | settings | variant.settings)


def trained(variant: Variant, recipe: Recipe, folder: Path) -> PretrainTrainer:
    """Train for the recipe's hours of processor time and return the trainer."""
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
    for kind in reversed(scores):  # real windows first, if any
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
