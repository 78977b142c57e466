"""Distances between surfaces, against closed forms and against MONAI on whole volumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from medsam_app.grid.patch import box_slices
from medsam_app.measure.surface_distances import surface_distances, usual_tolerance

SPACING = (0.7, 1.5, 4.0)


def box(low: tuple[int, ...], high: tuple[int, ...], shape: tuple[int, ...] = (30, 24, 16)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[box_slices(low, high)] = True
    return mask


def blobs(seed: int) -> np.ndarray:
    """Return a mask with many surfaces, some at the faces of the volume."""
    noise = np.random.default_rng(seed).normal(size=(30, 24, 16))
    return ndimage.gaussian_filter(noise, 2) > 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_is_found_in_mm(axis: int) -> None:
    """The distance of a flat plate shifted along its normal is the shift everywhere."""
    low, high = [4, 4, 4], [14, 14, 14]
    low[axis], high[axis] = 5, 6
    truth = box(tuple(low), tuple(high))
    mask = np.roll(truth, 2, axis=axis)
    mm = 2 * SPACING[axis]
    distances = surface_distances(mask, truth, spacing=SPACING, tolerance=mm)
    assert distances.hd95 == pytest.approx(mm) and distances.surface_dice == 1.0
    assert surface_distances(mask, truth, spacing=SPACING, tolerance=0.99 * mm).surface_dice == 0.0


def test_the_usual_tolerance_is_a_voxel() -> None:
    assert usual_tolerance(SPACING) == 4.0
    truth = box((4, 4, 4), (14, 14, 5))
    near, far = np.roll(truth, 1, axis=2), np.roll(truth, 2, axis=2)
    assert surface_distances(near, truth, spacing=SPACING).surface_dice == 1.0
    assert surface_distances(far, truth, spacing=SPACING).surface_dice == 0.0


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")
@pytest.mark.parametrize("seed", range(4))
def test_cutting_changes_nothing(seed: int) -> None:
    """MONAI on the complete volume gives the same, also where masks meet its faces."""
    mask, truth = blobs(seed), blobs(seed + 10)
    if seed % 2:  # small, in a corner
        mask, truth = mask & box((0, 0, 0), (9, 8, 7)), truth & box((0, 2, 0), (11, 9, 5))
    arrays = [torch.from_numpy(array)[None, None] for array in (mask, truth)]
    options = {"include_background": True, "spacing": list(SPACING)}
    distances = surface_distances(mask, truth, spacing=SPACING, tolerance=1.0)
    assert distances.surface_dice == pytest.approx(float(compute_surface_dice(*arrays, [1.0], **options)))
    assert 0 < distances.surface_dice < 1
    far = float(compute_hausdorff_distance(*arrays, percentile=95, **options))
    assert distances.hd95 == pytest.approx(far) and far > 0
    roomy = [np.pad(array, 40) for array in (mask, truth)]
    assert surface_distances(*roomy, spacing=SPACING, tolerance=1.0) == pytest.approx(distances)


def test_against_distances_worked_out_by_hand() -> None:
    """Distances from every surface voxel to the nearest voxel of the other surface."""
    mask, truth = blobs(1) & box((3, 3, 3), (12, 12, 12)), blobs(2) & box((4, 3, 2), (13, 11, 12))
    surfaces = [array & ~ndimage.binary_erosion(array) for array in (mask, truth)]
    points = [np.argwhere(surface) * SPACING for surface in surfaces]
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    distances = surface_distances(mask, truth, spacing=SPACING, tolerance=1.6)
    assert distances.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    right = (there <= 1.6).sum() + (back <= 1.6).sum()
    assert distances.surface_dice == pytest.approx(right / (len(there) + len(back)))


def test_empty_masks_have_defined_values() -> None:
    nothing, something = box((0, 0, 0), (0, 0, 0)), box((2, 2, 2), (9, 9, 9))
    assert surface_distances(nothing, nothing, spacing=SPACING) == (1.0, 0.0)
    assert surface_distances(nothing, something, spacing=SPACING) == (0.0, None)
    assert surface_distances(something, nothing, spacing=SPACING) == (0.0, None)
    same = surface_distances(something, something, spacing=SPACING, tolerance=0.0)
    assert same == (1.0, 0.0) and not math.isnan(same.surface_dice)
