"""Mask tools: fill holes, smooth, grow, shrink, and interpolate slices.

All functions take boolean arrays of two or three axes and return new arrays of the same shape. Voxels outside
the array are unknown and have no effect: a mask that ends at the border is not shrunk from that side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
#: Tolerance for rounding of distances, in mm.
_SLACK = 1e-3


def fill_holes(mask: Mask) -> Mask:
    """Return the mask with its holes filled."""
    return ndimage.binary_fill_holes(mask)


def smooth(mask: Mask, spacing: Sequence[float], mm: float) -> Mask:
    """Return the mask with a smoother outline, without parts narrower than about twice `mm`.

    Args:
        mask: mask to smooth.
        spacing: voxel size in mm along its axes.
        mm: standard deviation of the Gaussian; the outline is where the filtered mask is 0.5.
    """
    sigma = [mm / step for step in spacing]
    return ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest", truncate=3) > 0.5


def grow(mask: Mask, spacing: Sequence[float], mm: float) -> Mask:
    """Return the mask grown by `mm`; a negative number shrinks it.

    Distances are between voxel centres, so a mask does not grow into slices that are farther apart than `mm`.

    Args:
        mask: mask to grow.
        spacing: voxel size in mm along its axes.
        mm: distance in mm.
    """
    if mm < 0:
        return ~grow(~mask, spacing, -mm)
    if not mask.any():
        return mask.copy()
    return mask | (_distance(mask, spacing) <= mm + _SLACK)


def interpolate(mask: Mask, spacing: Sequence[float], axis: int, keys: Sequence[int] = ()) -> Mask:
    """Return the mask with missing slices interpolated from their neighbours.

    The signed distances to the outlines of two neighbouring key slices are averaged, weighted by proximity.
    If both slices hold a single component, the components are shifted along the line between their centres,
    so that an oblique vessel stays connected.

    Args:
        mask: (i, j, k).
        spacing: voxel size in mm along (i, j, k).
        axis: the axis perpendicular to the slices.
        keys: indices of the key slices; all slices between them are recomputed. By default all slices that
            are not empty, so that gaps are closed.
    """
    result = np.moveaxis(mask.copy(), axis, 0)
    filled = [int(n) for n in np.flatnonzero(result.any(axis=(1, 2)))]
    key_slices = sorted(set(filled) & set(keys)) if len(keys) else filled
    plane_spacing = [step for n, step in enumerate(spacing) if n != axis]
    for first, last in pairwise(key_slices):
        if last - first < 2:
            continue
        ends = [(_signed_distance(result[n], plane_spacing), _centre(result[n])) for n in (first, last)]
        for index in range(first + 1, last):
            result[index] = _blend(ends, (index - first) / (last - first))
    return np.moveaxis(result, 0, axis)


def _blend(ends: Sequence[tuple[NDArray[np.float32], NDArray[np.float64] | None]], share: float) -> Mask:
    (a, centre_a), (b, centre_b) = ends
    if centre_a is not None and centre_b is not None:
        centre = (1 - share) * centre_a + share * centre_b
        a = ndimage.shift(a, centre - centre_a, order=1, mode="nearest")
        b = ndimage.shift(b, centre - centre_b, order=1, mode="nearest")
    return (1 - share) * a + share * b < 0


def _centre(mask: Mask) -> NDArray[np.float64] | None:
    """Return the centre of the mask if it has a single component, else None."""
    _, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.array(ndimage.center_of_mass(mask)) if count == 1 else None


def _signed_distance(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float32]:
    """Return the signed distance in mm to the outline: below 0 inside, above 0 outside."""
    if mask.all():
        return np.full(mask.shape, -np.inf, dtype=np.float32)
    return _distance(mask, spacing) - _distance(~mask, spacing)


def _distance(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float32]:
    """Return the distance in mm to the nearest voxel of a mask that is not empty, 0 inside."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(step) for step in reversed(spacing)])
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(distance), 0)
