"""Validation of a finetuning run on windows of held-out cases, chosen as the predictor would choose them.

Each object is segmented by its learned prompt alone, if labels are learned, and then again by careful clicks
that do not say which label is meant. Dice is computed in the window on the plan's grid; `medsam-app evaluate`
scores whole volumes.
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

#: Kinds of measurement: without any prompt, and after each click.
AUTOMATIC, CLICKS = "automatic", "clicks"
#: Clicks on each object, and after how many of them Dice counts for the choice of the best.
MOST_CLICKS, COUNTED = 5, (1, 3, 5)
#: Objects that are measured at most, evenly spread.
MOST_OBJECTS = 32
#: Objects measured at a time at most; never more than are trained on at a time, which takes more memory.
BATCH = 8
#: Objects with fewer voxels are left out.
FEWEST_VOXELS = 10


@dataclass(frozen=True)
class ValidationWindow:
    """A window around an object: image (X, Y, Z) in the file's unit, valid and target booleans."""

    image: Tensor
    valid: Tensor
    target: Tensor
    label: int


class HeldOutValidation:
    """Fixed windows around objects of held-out cases.

    Args:
        cases: not among those to train on.
        plan: says the grid and the labels.

    Raises:
        MedsamError: a case cannot be read.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan) -> None:
        self.automatic = plan.automatic
        self.batch = min(BATCH, plan.micro_batch or plan.batch)
        pairs = [(case, value) for case in cases for value in plan.labels]
        keep = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_OBJECTS)).round().astype(int)
        wanted: dict[int, list[tuple[Case, int]]] = {}
        for index in keep.tolist():
            wanted.setdefault(id(pairs[index][0]), []).append(pairs[index])
        self.windows = [window for group in wanted.values() for window in _windows(group, plan)]

    @torch.inference_mode()
    def measure(
        self, model: Sam3D, adapter: Adapter, *, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, list[float]] | None:
        """Mean Dice over the objects by kind of measurement.

        Args:
            adapter: is on; its learned prompts are used.
            stopped: checked between batches; if it returns True, the result is None.
        """
        found: dict[str, list[Tensor]] = {AUTOMATIC: [], CLICKS: []}
        for start in range(0, len(self.windows), self.batch):
            if stopped():
                return None
            part = self.windows[start : start + self.batch]
            image, valid, target = (
                torch.stack([getattr(each, name) for each in part])[:, None].to(model.device)
                for name in ("image", "valid", "target")
            )
            embedding = model.encode_image(image, valid)

            def dice(logits: Tensor, target: Tensor = target, valid: Tensor = valid) -> Tensor:
                return dice_of((logits > 0).float(), target.float(), valid.float())[:, 0].cpu()

            if self.automatic:
                none = torch.zeros(len(part), 0, dtype=torch.int64, device=model.device)
                learned = adapter.prompts.tokens[[each.label for each in part]]
                prompts = RoiPrompts(none[..., None].expand(-1, -1, 3).float(), none, learned=learned)
                found[AUTOMATIC].append(dice(model.decode(embedding, prompts).best()[0])[:, None])
            # Deepest voxels first, as the product's window is chosen by: there is no chance in it.
            person = Interaction(target, np.random.default_rng(0), unprompted=[True] * len(part))
            person.first_clicks()
            after = []
            for number in range(MOST_CLICKS):
                logits = model.decode(embedding, person.prompts()).best()[0]
                after.append(dice(logits))
                if number + 1 < MOST_CLICKS:
                    person.correct(logits, careful=True)
            found[CLICKS].append(torch.stack(after, dim=1))
        return {kind: torch.cat(parts).mean(0).tolist() for kind, parts in found.items() if parts}

    def score(self, found: Mapping[str, Sequence[float]]) -> float:
        """Return the number that the best adapter is chosen by.

        It is the mean of Dice by learned prompts alone, if there are any, and after 1, 3 and 5 clicks.
        """
        values = [*found.get(AUTOMATIC, ()), *(found[CLICKS][n - 1] for n in COUNTED)]
        return sum(values) / len(values)


def _windows(group: Sequence[tuple[Case, int]], plan: Plan) -> list[ValidationWindow]:
    """Return windows around the given labels of one case, without those it does not show."""
    volume, label_map = group[0][0].load()
    places = list(plan.labels)
    found = []
    for _, value in group:
        truth = label_map == value
        if int(truth.sum()) < FEWEST_VOXELS:
            continue
        click = click_inside(truth, spacing=volume.spacing)
        middle = volume.grid.ras.points_from_file(click)
        roi = Roi.centred(middle, (plan.spacing,) * 3, plan.window, volume.grid.ras)
        image, valid = read_roi(volume.array, roi)
        target = (read_roi(truth, roi)[0] > 0.5) & valid
        if plan.clip is not None:
            image = image.clamp(*plan.clip)
        if target.any():
            found.append(ValidationWindow(image, valid, target, places.index(value)))
    return found
