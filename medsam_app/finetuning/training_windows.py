"""Training windows of labelled cases on the plan's grid, with random variations.

MONAI caches the cases and varies the windows. A window is a function of the plan's seed and its number, so it
does not matter which process draws it or when.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai import transforms as mt
from monai.data import CacheDataset
from numpy.typing import NDArray
from torch import Tensor

from medsam_app.datasets.cases import Case
from medsam_app.errors import VolumeError
from medsam_app.finetuning.plan import Plan
from medsam_app.grid.patch import Index
from medsam_app.grid.roi import Roi, read_roi
from medsam_app.io.loading import read_grid
from medsam_app.predict.core.intensity import rescale_intensities
from medsam_app.predict.whole_volume import whole_roi

#: A window is cut out so much larger, so that turning and zooming it find image at its corners.
ROOM = 1.2
#: Share of windows whose middle is a background voxel.
BACKGROUND_SHARE = 0.1
#: How often a label is requested whether or not the window shows it.
ANY_LABEL = 0.1
#: Of a class, this many voxels are kept from which middles of windows are drawn.
MOST_MIDDLES = 20_000
#: How often each variation of intensities is taken.
OFTEN = 0.3
#: Windows of a case that are kept where embeddings are.
VIEWS = 4
#: A case of whose windows this many show nothing never shows anything.
MOST_DRAWS = 100
KEYS = ("image", "label", "valid")
#: Bytes of a voxel of those, float32 and twice uint8, and of the place of a voxel.
VOXEL_BYTES, PLACE_BYTES = 6, 8


@dataclass(frozen=True)
class TrainingWindow:
    """One window and the label to segment in it.

    Attributes:
        image: (X, Y, Z) float32, about 0 to 1, axes closest to RAS.
        valid: (X, Y, Z) whether the voxel lies in the volume.
        target: (X, Y, Z) the voxels of the label; there may be none.
        labels: (X, Y, Z) int64 places of the plan's labels, from 1; 0 for background.
        label: place of the label among the plan's.
        view: number of the image region; windows with the same view differ in label and prompts alone.
        rng: source of every other random choice about this window.
    """

    image: Tensor
    valid: Tensor
    target: Tensor
    labels: Tensor
    label: int
    view: int
    rng: np.random.Generator


def roomy_window(plan: Plan) -> Index:
    """The size in which windows are cut out."""
    x, y, z = (int(np.ceil(side * ROOM)) for side in plan.window)
    return x, y, z


def bytes_on_grid(case: Case, plan: Plan) -> int:
    """Return the largest cached size of a case in bytes, from its header.

    Raises:
        MedsamError: it cannot be read.
    """
    shape = whole_roi(read_grid(case.image), (plan.spacing,) * 3, roomy_window(plan)).shape
    voxels = int(np.prod(shape))
    places = min(voxels, (len(plan.labels) + 1) * MOST_MIDDLES)
    return voxels * VOXEL_BYTES + places * PLACE_BYTES


def labels_in(label_map: NDArray[np.integer], roi: Roi, values: Sequence[int]) -> Tensor:
    """(X, Y, Z) uint8: place of a label among the values, from 1; 0 for all else.

    Each label is interpolated by itself and the largest share has the voxel, so that thick slices give smooth
    labels.
    """
    others, valid = read_roi(np.isin(label_map, list(values)), roi)
    best, chosen = 1 - others, torch.zeros(roi.shape, dtype=torch.uint8)
    for place, value in enumerate(values, start=1):
        share, _ = read_roi(label_map == value, roi)
        larger = share > best
        best[larger], chosen[larger] = share[larger], place
    chosen[~valid] = 0
    return chosen


class ReadOnGrid(mt.Transform):
    """A case's image, labels and validity on the plan's grid, each (1, X, Y, Z)."""

    def __init__(self, plan: Plan, size: Index) -> None:
        self.plan, self.size = plan, size

    def __call__(self, case: Case) -> dict[str, Any]:
        """Read a case and resample it to the plan's grid."""
        volume, label_map = case.load()
        roi = whole_roi(volume.grid, (self.plan.spacing,) * 3, self.size)
        image, valid = read_roi(volume.array, roi)
        image = rescale_intensities(image, valid, self.plan.clip)
        labels = labels_in(label_map, roi, list(self.plan.labels))
        return {"image": image[None], "label": labels[None], "valid": valid[None].to(torch.uint8)}


def variations(plan: Plan) -> list[mt.Transform]:
    """MONAI's transforms that vary a window; each with the probability that suits it."""
    turn = np.deg2rad(plan.rotate)
    found: list[Any] = [
        mt.RandAffined(
            KEYS,
            spatial_size=plan.window,
            prob=1.0,
            rotate_range=(turn,) * 3,
            scale_range=(plan.zoom,) * 3,
            mode=("bilinear", "nearest", "nearest"),
            padding_mode=("border", "zeros", "zeros"),
        )
    ]
    if plan.mirror:
        found += [mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)]
    if plan.bias:
        found.append(mt.RandBiasFieldd("image", prob=OFTEN, coeff_range=(-plan.bias, plan.bias)))
    if plan.gamma:
        found.append(mt.RandAdjustContrastd("image", prob=OFTEN, gamma=(1 - plan.gamma, 1 + plan.gamma)))
    if plan.blur:
        sigmas: Any = dict.fromkeys(("sigma_x", "sigma_y", "sigma_z"), (0.0, plan.blur))
        found.append(mt.RandGaussianSmoothd("image", prob=OFTEN, **sigmas))
    if plan.noise:
        found.append(mt.RandGaussianNoised("image", prob=OFTEN, std=plan.noise))
    return found


class TrainingWindows:
    """Windows of labelled cases by number.

    Args:
        cases: to train on.
        plan: says the grid, the labels, and how windows vary.
        memory: bytes that cached cases may take; those that do not fit are read again each time.

    Attributes:
        count, cached: how many cases there are, and how many of them are kept.

    Raises:
        MedsamError: a case cannot be read.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan, *, memory: float = 4e9) -> None:
        self.plan = plan
        size = roomy_window(plan)
        classes = len(plan.labels) + 1
        share = (1 - BACKGROUND_SHARE) / len(plan.labels)
        self.vary = mt.Compose(
            [
                ReadOnGrid(plan, size),
                mt.ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=MOST_MIDDLES),
                mt.RandCropByLabelClassesd(
                    KEYS,
                    label_key="label",
                    spatial_size=size,
                    num_classes=classes,
                    ratios=[BACKGROUND_SHARE, *[share] * len(plan.labels)],
                    indices_key="label_cls_indices",
                    warn=False,
                ),
                *variations(plan),
            ]
        )
        self.count = len(cases)
        self.names = [case.case for case in cases]
        together = np.cumsum([bytes_on_grid(case, plan) for case in cases])
        self.cached = int((together <= memory).sum())
        self.cases = CacheDataset(
            list(cases),
            self.vary,
            cache_num=self.cached,
            num_workers=min(2, os.cpu_count() or 1),
            progress=False,
            copy_cache=False,
        )

    def order(self, number: int) -> int:
        """Return the index of the case that a window shows: each case once before any is repeated."""
        turn, place = divmod(number, self.count)
        return int(np.random.default_rng((self.plan.seed, 1, turn)).permutation(self.count)[place])

    def draw(self, number: int) -> TrainingWindow:
        """Return the window of a number.

        Raises:
            VolumeError: the case shows no label in any of many windows.
        """
        view = number % (self.count * VIEWS) if self.plan.cached else number
        window, rng = (np.random.default_rng((self.plan.seed, 2 + n, (view, number)[n])) for n in range(2))
        for _ in range(MOST_DRAWS):
            self.vary.set_random_state(seed=int(window.integers(2**32)))
            (found,) = self.cases[self.order(view)]
            image, labels, valid = (torch.as_tensor(found[key]).squeeze(0) for key in KEYS)
            valid = valid > 0
            labels = torch.where(valid, labels.round().long(), 0)
            shown = [place for place in range(len(self.plan.labels)) if (labels == place + 1).any()]
            if self.plan.automatic and (not shown or rng.random() < ANY_LABEL):
                shown = list(range(len(self.plan.labels)))
            if shown:
                label = int(rng.choice(shown))
                return TrainingWindow(image.float(), valid, labels == label + 1, labels, label, view, rng)
        raise VolumeError(
            f"Not one of {MOST_DRAWS} windows of '{self.names[self.order(view)]}' shows a label; look at its "
            "label map."
        )
