"""Simulated clicks: where a careful or a hurried person would click next.

Used by training (hurried) and by the evaluation (careful: the deepest voxel of the largest error).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.patch import Index, box_slices, mask_bounds


def largest_component(region: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[slice, ...]]:
    """Largest 26-connected part of a region, cut to its bounding box, and that box."""
    parts, count = ndimage.label(region, structure=FULL_NEIGHBOURHOOD)
    if count == 0:
        raise ValueError("empty region")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    best = int(sizes.argmax())
    box = ndimage.find_objects(parts, max_label=best)[best - 1]
    return parts[box] == best, box


def depth(region: NDArray[np.bool_], spacing: ArrayLike = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """Distance in the unit of `spacing` to the nearest voxel outside; the array's border is outside."""
    padded = np.pad(region, 1)
    return ndimage.distance_transform_edt(padded, sampling=spacing)[1:-1, 1:-1, 1:-1]


def click_inside(
    region: NDArray[np.bool_], *, spacing: ArrayLike = (1.0, 1.0, 1.0), rng: np.random.Generator | None = None
) -> Index:
    """A voxel of the largest part of a region.

    Args:
        region: (i, j, k) booleans with at least one True.
        spacing: mm along (i, j, k).
        rng: without it the deepest voxel (the first in C order among equals), as a careful person;
            with it a random voxel, deeper ones more likely.
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
    """Click in the largest connected error: (voxel, positive), or None when the masks agree."""
    bounds = mask_bounds(mask != truth)
    if bounds is None:
        return None
    # Labelling a whole volume would take longer than the model does.
    box = box_slices(*bounds)
    missed, added = truth[box] & ~mask[box], mask[box] & ~truth[box]
    regions = [region for region in (missed, added) if region.any()]
    largest = max(regions, key=lambda region: int(largest_component(region)[0].sum()))
    at = click_inside(largest, spacing=spacing, rng=rng)
    voxel = (at[0] + bounds[0][0], at[1] + bounds[0][1], at[2] + bounds[0][2])
    return voxel, bool(truth[voxel])


#: Most by which a face of a box is off, as a fraction of the box's size across it.
BOX_JITTER = 0.1


def jittered_box(
    truth: NDArray[np.bool_], rng: np.random.Generator, amount: float = BOX_JITTER
) -> tuple[Index, Index]:
    """First and last voxel of an object's bounding box, each face moved by up to a part of its size.

    Args:
        truth: (i, j, k) the object, not empty.
        rng: where the unsteadiness comes from; the box stays within the volume.
        amount: the part.
    """
    bounds = mask_bounds(truth)
    if bounds is None:
        raise ValueError("empty object")
    low, high = np.array(bounds[0]), np.array(bounds[1]) - 1
    moved = np.stack([low, high]) + rng.uniform(-amount, amount, size=(2, 3)) * (high - low + 1)
    moved = np.clip(np.round(moved), 0, np.array(truth.shape) - 1).astype(int)
    return tuple(moved.min(axis=0).tolist()), tuple(moved.max(axis=0).tolist())
