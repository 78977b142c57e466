"""Training windows of labelled cases on the plan's grid, with random variations.

MONAI caches the cases and varies the windows. A window depends only on the plan's seed and its number, not on
the process that draws it or on earlier windows.
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

#: Factor by which windows are cut out larger, so that rotation and zoom find image at the corners.
CROP_FACTOR = 1.2
#: Fraction of windows that are centred on a background voxel.
BACKGROUND_SHARE = 0.1
#: Probability that the label is chosen from all labels, including those that the window does not show.
ANY_LABEL = 0.1
#: Most voxels per class that are stored as candidates for the centres of windows.
MOST_CENTRES = 20_000
#: Probability of each variation of intensities.
VARIATION_RATE = 0.3
#: Different windows per case if embeddings are cached.
VIEWS = 4
#: Attempts to draw a window that shows a label before the case is an error.
MOST_DRAWS = 100
KEYS = ("image", "label", "valid")
#: Bytes per cached voxel (float32 and twice uint8), and per stored voxel index.
VOXEL_BYTES, INDEX_BYTES = 6, 8


@dataclass(frozen=True)
class TrainingWindow:
    """One window and the label to segment in it.

    Attributes:
        image: (X, Y, Z) float32, about 0 to 1, axes closest to RAS.
        valid: (X, Y, Z) whether the voxel lies in the volume.
        target: (X, Y, Z) whether the voxel has the label; may be False everywhere.
        labels: (X, Y, Z) int64, 1 + index of the voxel's label in the plan; 0 for background.
        label: index of the label in the plan.
        view: number of the image region; windows with the same view differ only in label and prompts.
        rng: source of all further random choices for this window.
    """

    image: Tensor
    valid: Tensor
    target: Tensor
    labels: Tensor
    label: int
    view: int
    rng: np.random.Generator


def crop_size(plan: Plan) -> Index:
    """Return the size (X, Y, Z) in which windows are cut out before they are varied."""
    x, y, z = (int(np.ceil(side * CROP_FACTOR)) for side in plan.window)
    return x, y, z


def bytes_on_grid(case: Case, plan: Plan) -> int:
    """Return the largest cached size of a case in bytes, from its header.

    Raises:
        MedsamError: the image cannot be read.
    """
    shape = whole_roi(read_grid(case.image), (plan.spacing,) * 3, crop_size(plan)).shape
    voxels = int(np.prod(shape))
    centres = min(voxels, (len(plan.labels) + 1) * MOST_CENTRES)
    return voxels * VOXEL_BYTES + centres * INDEX_BYTES


def labels_in(label_map: NDArray[np.integer], roi: Roi, values: Sequence[int]) -> Tensor:
    """Resample a label map to a ROI.

    Each label is interpolated separately and a voxel gets the label with the largest share, so that thick
    slices give smooth labels.

    Args:
        label_map: (i, j, k) label values.
        roi: the target grid.
        values: label values to keep.

    Returns:
        (X, Y, Z) uint8, 1 + index of the voxel's label in `values`; 0 for all other voxels.
    """
    covered, valid = read_roi(np.isin(label_map, list(values)), roi)
    best, chosen = 1 - covered, torch.zeros(roi.shape, dtype=torch.uint8)
    for number, value in enumerate(values, start=1):
        share, _ = read_roi(label_map == value, roi)
        larger = share > best
        best[larger], chosen[larger] = share[larger], number
    chosen[~valid] = 0
    return chosen


class ReadOnGrid(mt.Transform):
    """Transform that reads a case's image, labels and validity on the plan's grid, each (1, X, Y, Z)."""

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
    """Return MONAI's random transforms that vary a window."""
    angle = np.deg2rad(plan.rotate)
    transforms: list[Any] = [
        mt.RandAffined(
            KEYS,
            spatial_size=plan.window,
            prob=1.0,
            rotate_range=(angle,) * 3,
            scale_range=(plan.zoom,) * 3,
            mode=("bilinear", "nearest", "nearest"),
            padding_mode=("border", "zeros", "zeros"),
        )
    ]
    if plan.mirror:
        transforms += [mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)]
    if plan.bias:
        transforms.append(
            mt.RandBiasFieldd("image", prob=VARIATION_RATE, coeff_range=(-plan.bias, plan.bias))
        )
    if plan.gamma:
        transforms.append(
            mt.RandAdjustContrastd("image", prob=VARIATION_RATE, gamma=(1 - plan.gamma, 1 + plan.gamma))
        )
    if plan.blur:
        sigmas: Any = dict.fromkeys(("sigma_x", "sigma_y", "sigma_z"), (0.0, plan.blur))
        transforms.append(mt.RandGaussianSmoothd("image", prob=VARIATION_RATE, **sigmas))
    if plan.noise:
        transforms.append(mt.RandGaussianNoised("image", prob=VARIATION_RATE, std=plan.noise))
    return transforms


class TrainingWindows:
    """Training windows of labelled cases, by number.

    Args:
        cases: cases to train on.
        plan: plan of the run, for the grid, the labels and the variations.
        memory: bytes for cached cases; other cases are read again for each window.

    Attributes:
        count, cached: number of cases, and number of cached cases.

    Raises:
        MedsamError: a case cannot be read.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan, *, memory: float = 4e9) -> None:
        self.plan = plan
        size = crop_size(plan)
        classes = len(plan.labels) + 1
        share = (1 - BACKGROUND_SHARE) / len(plan.labels)
        self.vary = mt.Compose(
            [
                ReadOnGrid(plan, size),
                mt.ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=MOST_CENTRES),
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
        cumulative = np.cumsum([bytes_on_grid(case, plan) for case in cases])
        self.cached = int((cumulative <= memory).sum())
        self.cases = CacheDataset(
            list(cases),
            self.vary,
            cache_num=self.cached,
            num_workers=min(2, os.cpu_count() or 1),
            progress=False,
            copy_cache=False,
        )

    def order(self, number: int) -> int:
        """Return the index of a window's case; every case is used once before any is repeated."""
        epoch, position = divmod(number, self.count)
        return int(np.random.default_rng((self.plan.seed, 1, epoch)).permutation(self.count)[position])

    def draw(self, number: int) -> TrainingWindow:
        """Return the window with a number.

        Raises:
            VolumeError: none of `MOST_DRAWS` windows of the case shows a label.
        """
        view = number % (self.count * VIEWS) if self.plan.cached else number
        window, rng = (np.random.default_rng((self.plan.seed, 2 + n, (view, number)[n])) for n in range(2))
        for _ in range(MOST_DRAWS):
            self.vary.set_random_state(seed=int(window.integers(2**32)))
            (arrays,) = self.cases[self.order(view)]
            image, labels, valid = (torch.as_tensor(arrays[key]).squeeze(0) for key in KEYS)
            valid = valid > 0
            labels = torch.where(valid, labels.round().long(), 0)
            shown = [index for index in range(len(self.plan.labels)) if (labels == index + 1).any()]
            if self.plan.automatic and (not shown or rng.random() < ANY_LABEL):
                shown = list(range(len(self.plan.labels)))
            if shown:
                label = int(rng.choice(shown))
                return TrainingWindow(image.float(), valid, labels == label + 1, labels, label, view, rng)
        raise VolumeError(
            f"Not one of {MOST_DRAWS} windows of '{self.names[self.order(view)]}' shows a label; look at its "
            "label map."
        )
