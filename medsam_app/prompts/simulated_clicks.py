"""Simulated clicks: where a careful or a hurried user would click next.

The evaluation uses careful clicks (the deepest voxel of the largest error), training uses hurried (random)
ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.patch import Index, box_slices, mask_bounds


def largest_component(region: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[slice, ...]]:
    """Return the largest 26-connected part of a region, cropped to its bounding box, and that box."""
    parts, count = ndimage.label(region, structure=FULL_NEIGHBOURHOOD)
    if count == 0:
        raise ValueError("empty region")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    best = int(sizes.argmax())
    box = ndimage.find_objects(parts, max_label=best)[best - 1]
    return parts[box] == best, box


def depth(region: NDArray[np.bool_], spacing: ArrayLike = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """Return each voxel's distance, in the unit of `spacing`, to the nearest voxel outside the region.

    Voxels beyond the array count as outside.
    """
    padded = np.pad(region, 1)
    return ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1]


def click_inside(
    region: NDArray[np.bool_], *, spacing: ArrayLike = (1.0, 1.0, 1.0), rng: np.random.Generator | None = None
) -> Index:
    """Return a voxel of the largest part of a region.

    Args:
        region: (i, j, k) booleans with at least one True.
        spacing: mm along (i, j, k).
        rng: None for the deepest voxel (the first in C order among equals), as a careful user clicks;
            otherwise the voxel is random, with a probability proportional to its depth.
    """
    part, box = largest_component(region)
    distance = depth(part, spacing)
    if rng is None:
        flat = int(distance.argmax())
    else:
        weights = np.cumsum(distance.ravel())
        flat = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
    index = np.unravel_index(min(flat, distance.size - 1), distance.shape)
    return tuple(int(i + s.start) for i, s in zip(index, box, strict=True))  # type: ignore[return-value]


def next_click(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    *,
    spacing: ArrayLike = (1.0, 1.0, 1.0),
    rng: np.random.Generator | None = None,
) -> tuple[Index, bool] | None:
    """Return a click in the largest connected error as (voxel, positive), or None if the masks agree.

    Args:
        mask: (i, j, k) mask to correct.
        truth: (i, j, k) correct mask.
        spacing: mm along (i, j, k).
        rng: as in `click_inside`.
    """
    bounds = mask_bounds(mask != truth)
    if bounds is None:
        return None
    # Labelling the complete volume would take longer than running the model.
    box = box_slices(*bounds)
    missed, added = truth[box] & ~mask[box], mask[box] & ~truth[box]
    regions = [region for region in (missed, added) if region.any()]
    largest = max(regions, key=lambda region: int(largest_component(region)[0].sum()))
    at = click_inside(largest, spacing=spacing, rng=rng)
    voxel = (at[0] + bounds[0][0], at[1] + bounds[0][1], at[2] + bounds[0][2])
    return voxel, bool(truth[voxel])


#: Largest shift of a face of a box, as a fraction of the box's size along that axis.
BOX_JITTER = 0.1


def jittered_box(
    truth: NDArray[np.bool_], rng: np.random.Generator, amount: float = BOX_JITTER
) -> tuple[Index, Index]:
    """Return the first and last voxel of an object's bounding box with each face shifted at random.

    The box stays within the volume.

    Args:
        truth: (i, j, k) mask of the object, not empty.
        rng: random generator of the shifts.
        amount: largest shift, as a fraction of the box's size along that axis.
    """
    bounds = mask_bounds(truth)
    if bounds is None:
        raise ValueError("empty object")
    low, high = np.array(bounds[0]), np.array(bounds[1]) - 1
    corners = np.stack([low, high]) + rng.uniform(-amount, amount, size=(2, 3)) * (high - low + 1)
    corners = np.clip(np.round(corners), 0, np.array(truth.shape) - 1).astype(int)
    return tuple(corners.min(axis=0).tolist()), tuple(corners.max(axis=0).tolist())
