"""Tools that change a mask as a whole: holes, parts, outline, size, and slices that are missing.

All take boolean arrays of two or three axes and give new ones of the same shape. Beyond the array nothing is
known, and nothing changes because of it: a mask that is cut off there is not shrunk from that side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
#: Millimetres that rounding may take from a distance.
_SLACK = 1e-3


def fill_holes(mask: Mask) -> Mask:
    """Return the mask with its holes filled."""
    return ndimage.binary_fill_holes(mask)


def smooth(mask: Mask, spacing: Sequence[float], mm: float) -> Mask:
    """Return the mask with a smoother outline, without parts narrower than about twice `mm`.

    Args:
        mask: what is smoothed.
        spacing: voxel size in mm along its axes.
        mm: standard deviation of the Gaussian; the outline is where half of the weight is inside.
    """
    sigma = [mm / step for step in spacing]
    return ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest", truncate=3) > 0.5


def grow(mask: Mask, spacing: Sequence[float], mm: float) -> Mask:
    """Return the mask grown by `mm`; a negative number shrinks it.

    Distances are between middles of voxels, so a mask does not grow across slices that are farther apart.

    Args:
        mask: what grows.
        spacing: voxel size in mm along its axes.
        mm: how far.
    """
    if mm < 0:
        return ~grow(~mask, spacing, -mm)
    if not mask.any():
        return mask.copy()
    return mask | (_away(mask, spacing) <= mm + _SLACK)


def interpolate(mask: Mask, spacing: Sequence[float], axis: int, keys: Sequence[int] = ()) -> Mask:
    """Return the mask with missing slices interpolated from their neighbours.

    Of two neighbouring key slices the signed distances to the outlines are averaged, by nearness. Where both
    hold one part each, it is moved on the way from the one's middle to the other's, so that an oblique vessel
    does not break.

    Args:
        mask: (i, j, k).
        spacing: voxel size in mm along (i, j, k).
        axis: the axis across the slices.
        keys: slices to go by, whose neighbours between them are all recomputed; by default those that hold
            any voxel, so that gaps are closed.
    """
    out = np.moveaxis(mask.copy(), axis, 0)
    drawn = [int(n) for n in np.flatnonzero(out.any(axis=(1, 2)))]
    known = sorted(set(drawn) & set(keys)) if len(keys) else drawn
    within = [step for n, step in enumerate(spacing) if n != axis]
    for first, last in pairwise(known):
        if last - first < 2:
            continue
        ends = [(_signed_distance(out[n], within), _middle(out[n])) for n in (first, last)]
        for between in range(first + 1, last):
            out[between] = _blend(ends, (between - first) / (last - first))
    return np.moveaxis(out, 0, axis)


def _blend(ends: Sequence[tuple[NDArray[np.float32], NDArray[np.float64] | None]], share: float) -> Mask:
    (a, from_), (b, to) = ends
    if from_ is not None and to is not None:
        middle = (1 - share) * from_ + share * to
        a = ndimage.shift(a, middle - from_, order=1, mode="nearest")
        b = ndimage.shift(b, middle - to, order=1, mode="nearest")
    return (1 - share) * a + share * b < 0


def _middle(mask: Mask) -> NDArray[np.float64] | None:
    """The centre of a mask's one part; None where it has several."""
    _, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.array(ndimage.center_of_mass(mask)) if count == 1 else None


def _signed_distance(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float32]:
    """Distance in mm to the nearest voxel on the other side: below 0 inside, above 0 outside."""
    if mask.all():
        return np.full(mask.shape, -np.inf, dtype=np.float32)
    return _away(mask, spacing) - _away(~mask, spacing)


def _away(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float32]:
    """Distance in mm to the nearest voxel of a mask that has some, 0 inside."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(step) for step in reversed(spacing)])
    far = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(far), 0)
