"""Validation of pretraining: the same windows and simulated clicks every time.

No window is used for training: synthetic windows use seeds that training never draws, and real windows show
objects of `dev` cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsam_app.datasets.cases import MANIFEST
from medsam_app.models.sam3d import Sam3D
from medsam_app.pretraining.recipe import Recipe
from medsam_app.pretraining.windows import Mixture, RealWindows, Window, load_cases
from medsam_app.synthetic.sampler import Draws
from medsam_app.training.loss import dice_of
from medsam_app.training.simulated_user import Interaction

#: Split of the real cases.
SPLIT = "dev"
#: Decodes per window.
ROUNDS = 5
#: First seed; training uses only smaller seeds.
FIRST_SEED = 2**62


@dataclass(frozen=True)
class Batch:
    """Windows of one size: image, valid and target are (B, 1, n, n, n)."""

    image: Tensor
    valid: Tensor
    target: Tensor


class Validation:
    """Fixed windows on which models are measured.

    Args:
        recipe: recipe of the run; windows cycle through its sides and have its batch sizes.
        data: folder with a manifest, or None for synthetic windows alone.

    Attributes:
        batches: batches by kind: 'synthetic', and 'dev' if the data have such cases.

    Raises:
        MedsamError: a case cannot be read.
    """

    def __init__(self, recipe: Recipe, data: Path | None) -> None:
        synthetic = Mixture(None, {"synthetic": 1.0})
        self.batches = {"synthetic": _batches(recipe, synthetic.draw)}
        available = data is not None and (data / MANIFEST).is_file()
        real = RealWindows(load_cases(data, SPLIT) if data and available else [])
        if real.names:  # only the windows stay in memory, not the cases
            self.batches[SPLIT] = _batches(recipe, lambda seed, n: real.draw(Draws(seed), n))

    @torch.inference_mode()
    def measure(
        self, model: Sam3D, device: torch.device, *, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, list[float]] | None:
        """Return the mean Dice after each round of careful clicks, by kind of window.

        Args:
            model: model in evaluation mode.
            device: device of the model.
            stopped: checked between batches; if it returns True, the result is None.
        """
        means = {}
        for kind, batches in self.batches.items():
            scores = []
            for number, batch in enumerate(batches):
                if stopped():
                    return None
                scores.append(_measure_batch(model, batch, np.random.default_rng(number), device))
            means[kind] = torch.cat(scores).mean(0).tolist()
        return means


def _batches(recipe: Recipe, draw: Callable[[int, int], Window]) -> list[Batch]:
    """As many windows as the recipe says, the sides it names in turn."""
    sizes = dict(recipe.windows)
    by_side: dict[int, list[Window]] = {side: [] for side in sizes}
    for number in range(recipe.validation_windows):
        side = list(sizes)[number % len(sizes)]
        by_side[side].append(draw(FIRST_SEED + number, side))
    batches = []
    for side, windows in by_side.items():
        for start in range(0, len(windows), sizes[side]):
            part = windows[start : start + sizes[side]]
            tensors = (
                torch.stack([getattr(w, name) for w in part])[:, None]
                for name in ("image", "valid", "target")
            )
            batches.append(Batch(*tensors))
    return batches


def _measure_batch(model: Sam3D, batch: Batch, rng: np.random.Generator, device: torch.device) -> Tensor:
    """Return the Dice (B, rounds) of each window after each round."""
    image, valid, target = (tensor.to(device) for tensor in (batch.image, batch.valid, batch.target))
    user = Interaction(target, rng)
    embedding = model.encode_image(image, valid)
    scores = []
    for number in range(ROUNDS):
        logits = model.decode(embedding, user.prompts()).best()[0]
        scores.append(dice_of((logits > 0).float(), target.float(), valid.float())[:, 0].cpu())
        if number + 1 < ROUNDS:
            user.correct(logits, careful=True)
    return torch.stack(scores, dim=1)
