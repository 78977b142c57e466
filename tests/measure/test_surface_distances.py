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
    """Something with many surfaces that also meets the faces of the volume."""
    noise = np.random.default_rng(seed).normal(size=(30, 24, 16))
    return ndimage.gaussian_filter(noise, 2) > 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_is_found_in_mm(axis: int) -> None:
    """Of a flat plate that is moved across itself all of the surface is off by the shift."""
    low, high = [4, 4, 4], [14, 14, 14]
    low[axis], high[axis] = 5, 6
    truth = box(tuple(low), tuple(high))
    mask = np.roll(truth, 2, axis=axis)
    mm = 2 * SPACING[axis]
    found = surface_distances(mask, truth, spacing=SPACING, tolerance=mm)
    assert found.hd95 == pytest.approx(mm) and found.surface_dice == 1.0
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
    """MONAI on the whole volume says the same, also where masks meet its faces."""
    mask, truth = blobs(seed), blobs(seed + 10)
    if seed % 2:  # small, and in a corner
        mask, truth = mask & box((0, 0, 0), (9, 8, 7)), truth & box((0, 2, 0), (11, 9, 5))
    whole = [torch.from_numpy(each)[None, None] for each in (mask, truth)]
    options = {"include_background": True, "spacing": list(SPACING)}
    found = surface_distances(mask, truth, spacing=SPACING, tolerance=1.0)
    assert found.surface_dice == pytest.approx(float(compute_surface_dice(*whole, [1.0], **options)))
    assert 0 < found.surface_dice < 1
    far = float(compute_hausdorff_distance(*whole, percentile=95, **options))
    assert found.hd95 == pytest.approx(far) and far > 0
    roomy = [np.pad(each, 40) for each in (mask, truth)]
    assert surface_distances(*roomy, spacing=SPACING, tolerance=1.0) == pytest.approx(found)


def test_against_distances_worked_out_by_hand() -> None:
    """From every voxel of one surface to the nearest of the other."""
    mask, truth = blobs(1) & box((3, 3, 3), (12, 12, 12)), blobs(2) & box((4, 3, 2), (13, 11, 12))
    surfaces = [each & ~ndimage.binary_erosion(each) for each in (mask, truth)]
    points = [np.argwhere(each) * SPACING for each in surfaces]
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    found = surface_distances(mask, truth, spacing=SPACING, tolerance=1.6)
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    right = (there <= 1.6).sum() + (back <= 1.6).sum()
    assert found.surface_dice == pytest.approx(right / (len(there) + len(back)))


def test_empty_masks_have_defined_values() -> None:
    nothing, something = box((0, 0, 0), (0, 0, 0)), box((2, 2, 2), (9, 9, 9))
    assert surface_distances(nothing, nothing, spacing=SPACING) == (1.0, 0.0)
    assert surface_distances(nothing, something, spacing=SPACING) == (0.0, None)
    assert surface_distances(something, nothing, spacing=SPACING) == (0.0, None)
    same = surface_distances(something, something, spacing=SPACING, tolerance=0.0)
    assert same == (1.0, 0.0) and not math.isnan(same.surface_dice)
