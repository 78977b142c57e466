"""Validation of a fine-tuning run on windows of held-out cases.

The windows are those that the predictor would choose. Each object is segmented with only its learned prompt,
if the plan has learned prompts, and again with careful clicks and no learned prompt. Dice is computed in the
window on the plan's grid; `medsam-app evaluate` scores complete volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsam_app.adapters.adapter import Adapter
from medsam_app.datasets.cases import Case
from medsam_app.finetuning.plan import Plan
from medsam_app.grid.roi import Roi, read_roi
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from medsam_app.prompts.simulated_clicks import click_inside
from medsam_app.training.loss import dice_of
from medsam_app.training.simulated_user import Interaction

#: Kinds of measurement: with only the learned prompt, and after each click.
AUTOMATIC, CLICKS = "automatic", "clicks"
#: Clicks per object, and numbers of clicks after which Dice counts towards the score.
MOST_CLICKS, COUNTED = 5, (1, 3, 5)
#: Most objects that are measured, evenly spread.
MOST_OBJECTS = 32
#: Most objects measured at a time; never more than are trained on at a time, so memory suffices.
BATCH = 8
#: Objects with fewer voxels are left out.
FEWEST_VOXELS = 10


@dataclass(frozen=True)
class ValidationWindow:
    """Window around an object.

    Attributes:
        image: (X, Y, Z) intensities in the file's unit.
        valid: (X, Y, Z) whether the voxel lies in the volume.
        target: (X, Y, Z) whether the voxel belongs to the object.
        label: index of the label in the plan.
    """

    image: Tensor
    valid: Tensor
    target: Tensor
    label: int


class HeldOutValidation:
    """Fixed windows around objects of held-out cases.

    Args:
        cases: cases that are not trained on.
        plan: plan of the run, for the grid and the labels.

    Raises:
        MedsamError: a case cannot be read.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan) -> None:
        self.automatic = plan.automatic
        self.batch = min(BATCH, plan.micro_batch or plan.batch)
        pairs = [(case, value) for case in cases for value in plan.labels]
        indices = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_OBJECTS)).round().astype(int)
        by_case: dict[int, list[tuple[Case, int]]] = {}
        for index in indices.tolist():
            by_case.setdefault(id(pairs[index][0]), []).append(pairs[index])
        self.windows = [window for group in by_case.values() for window in _windows(group, plan)]

    @torch.inference_mode()
    def measure(
        self, model: Sam3D, adapter: Adapter, *, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, list[float]] | None:
        """Return the mean Dice over the objects by kind of measurement.

        Args:
            model: model with the adapter.
            adapter: enabled adapter, whose learned prompts are used.
            stopped: checked between batches; if it returns True, the result is None.
        """
        scores: dict[str, list[Tensor]] = {AUTOMATIC: [], CLICKS: []}
        for start in range(0, len(self.windows), self.batch):
            if stopped():
                return None
            batch = self.windows[start : start + self.batch]
            image, valid, target = (
                torch.stack([getattr(window, name) for window in batch])[:, None].to(model.device)
                for name in ("image", "valid", "target")
            )
            embedding = model.encode_image(image, valid)

            def dice(logits: Tensor, target: Tensor = target, valid: Tensor = valid) -> Tensor:
                return dice_of((logits > 0).float(), target.float(), valid.float())[:, 0].cpu()

            if self.automatic:
                none = torch.zeros(len(batch), 0, dtype=torch.int64, device=model.device)
                learned = adapter.prompts.tokens[[window.label for window in batch]]
                prompts = RoiPrompts(none[..., None].expand(-1, -1, 3).float(), none, learned=learned)
                scores[AUTOMATIC].append(dice(model.decode(embedding, prompts).best()[0])[:, None])
            # First click on the deepest voxel, around which the window was chosen; nothing here is random.
            user = Interaction(target, np.random.default_rng(0), unprompted=[True] * len(batch))
            user.first_clicks()
            dice_by_click = []
            for number in range(MOST_CLICKS):
                logits = model.decode(embedding, user.prompts()).best()[0]
                dice_by_click.append(dice(logits))
                if number + 1 < MOST_CLICKS:
                    user.correct(logits, careful=True)
            scores[CLICKS].append(torch.stack(dice_by_click, dim=1))
        return {kind: torch.cat(parts).mean(0).tolist() for kind, parts in scores.items() if parts}

    def score(self, measured: Mapping[str, Sequence[float]]) -> float:
        """Return the score by which the best adapter is chosen.

        It is the mean of the Dice with only the learned prompt, if measured, and after 1, 3 and 5 clicks.

        Args:
            measured: mean Dice by kind of measurement.
        """
        values = [*measured.get(AUTOMATIC, ()), *(measured[CLICKS][n - 1] for n in COUNTED)]
        return sum(values) / len(values)


def _windows(group: Sequence[tuple[Case, int]], plan: Plan) -> list[ValidationWindow]:
    """Return windows around labels of one case, without those that have too few voxels."""
    volume, label_map = group[0][0].load()
    places = list(plan.labels)
    windows = []
    for _, value in group:
        truth = label_map == value
        if int(truth.sum()) < FEWEST_VOXELS:
            continue
        click = click_inside(truth, spacing=volume.spacing)
        centre = volume.grid.ras.points_from_file(click)
        roi = Roi.centred(centre, (plan.spacing,) * 3, plan.window, volume.grid.ras)
        image, valid = read_roi(volume.array, roi)
        target = (read_roi(truth, roi)[0] > 0.5) & valid
        if plan.clip is not None:
            image = image.clamp(*plan.clip)
        if target.any():
            windows.append(ValidationWindow(image, valid, target, places.index(value)))
    return windows
