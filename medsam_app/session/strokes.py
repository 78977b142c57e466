"""Voxels of brush strokes and lassos.

Positions are voxel indices (i, j, k) of the file. They may be outside the volume, where they draw nothing.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch, box_slices
from medsam_app.prompts.types import Scribble

#: Tolerance for rounding of distances, in mm.
_SLACK = 1e-3


def brush_stroke(points: ArrayLike, radius: float, grid: Grid, *, axis: int | None = None) -> Patch:
    """Return the voxels that a brush stroke covers.

    Args:
        points: (N, 3) corners of the stroke, voxel indices (i, j, k).
        radius: radius of the brush in mm; voxels on the line itself are always drawn.
        grid: grid of the volume.
        axis: axis perpendicular to the slice on which the stroke begins, to draw on that slice only; None for
            a ball.

    Raises:
        PromptError: the stroke is outside the volume.
    """
    corners = _clipped(points, grid)
    spacing, last = grid.spacing, np.asarray(grid.shape) - 1
    reach = radius / spacing
    if axis is not None:
        corners[:, axis] = np.floor(corners[0, axis] + 0.5)
        reach[axis] = 0
    low = np.maximum(np.floor(corners.min(axis=0) - reach), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(axis=0) + reach), last).astype(int)
    if (low > high).any():
        raise PromptError("That stroke lies outside the image; draw inside it.")
    mask = np.zeros(high - low + 1, dtype=bool)
    for a, b in pairwise([*corners, corners[-1]]):
        first = np.clip(np.floor(np.minimum(a, b) - reach).astype(int), low, high + 1)
        stop = np.clip(np.ceil(np.maximum(a, b) + reach).astype(int) + 1, low, high + 1)
        if (first >= stop).any():
            continue
        region = mask[box_slices(first, stop, low)]
        region |= _squared_distances(a, b, first, stop, spacing) <= (radius + _SLACK) ** 2
    on_line = Scribble(coordinates=tuple(map(tuple, corners.tolist()))).voxels(grid.shape)
    inside = ((on_line >= low) & (on_line <= high)).all(axis=1) & _in_box(on_line, corners)
    mask[tuple((on_line[inside] - low).T)] = True
    return Patch((int(low[0]), int(low[1]), int(low[2])), mask)


def _clipped(points: ArrayLike, grid: Grid) -> NDArray[np.float64]:
    """Return (N, 3) corners; those far outside the volume are moved closer, to limit the work."""
    shape = np.asarray(grid.shape, dtype=float)
    return np.clip(np.asarray(points, dtype=float).reshape(-1, 3), -shape, 2 * shape)


def _in_box(voxels: NDArray[np.intp], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (N,) whether voxels of a line are in the box of its corners, and not moved into the volume."""
    return ((voxels >= corners.min(axis=0) - 0.5) & (voxels <= corners.max(axis=0) + 0.5)).all(axis=1)


def _squared_distances(
    a: NDArray, b: NDArray, first: NDArray[np.int_], stop: NDArray[np.int_], spacing: NDArray
) -> NDArray[np.float64]:
    """Return the squared distances in mm² of the voxels in [first, stop) to the segment from a to b.

    Args:
        a, b: (3,) ends of the segment, voxel indices (i, j, k).
        first, stop: (3,) range of the voxels; `stop` is excluded.
        spacing: (3,) voxel size in mm along (i, j, k).
    """
    axes = [
        (np.arange(start, end) - origin) * mm
        for start, end, origin, mm in zip(first, stop, a, spacing, strict=True)
    ]
    u, v, w = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    line = (b - a) * spacing
    length = float(line @ line)
    along = (u * line[0] + v * line[1] + w * line[2]) / length if length else np.zeros(1)
    nearest = np.clip(along, 0, 1)
    return (u - nearest * line[0]) ** 2 + (v - nearest * line[1]) ** 2 + (w - nearest * line[2]) ** 2


def lasso(points: ArrayLike, grid: Grid, *, axis: int) -> Patch:
    """Return the voxels of a slice whose centres are inside a closed line, which may cross itself.

    Args:
        points: (N, 3) corners of the line, voxel indices (i, j, k); its end is joined to its beginning.
        grid: grid of the volume.
        axis: axis perpendicular to the slice; the first point determines the slice.

    Raises:
        PromptError: no voxel of the volume is inside.
    """
    corners = _clipped(points, grid)
    index = int(np.floor(corners[0, axis] + 0.5))
    u, v = (n for n in range(3) if n != axis)
    line = corners[:, [u, v]]
    low = np.maximum(np.ceil(line.min(axis=0)), 0).astype(int)
    high = np.minimum(np.floor(line.max(axis=0)), np.array(grid.shape)[[u, v]] - 1).astype(int)
    if (low > high).any() or not 0 <= index < grid.shape[axis]:
        raise PromptError("That lasso holds no voxel of the image; draw around at least one.")
    inside = _winds_around(line, np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    if not inside.any():
        raise PromptError("That lasso holds no voxel of the image; draw around at least one.")
    start = [0, 0, 0]
    start[axis], start[u], start[v] = index, int(low[0]), int(low[1])
    return Patch((start[0], start[1], start[2]), np.expand_dims(inside, axis))


def _winds_around(
    line: NDArray[np.float64], rows: NDArray[np.int_], columns: NDArray[np.int_]
) -> NDArray[np.bool_]:
    """Return (rows, columns) whether a closed line winds around each position.

    The winding number of a position is the signed number of crossings to its left.
    """
    following = np.roll(line, -1, axis=0)
    inside = np.zeros((len(rows), len(columns)), dtype=bool)
    for n, row in enumerate(rows):
        up = (line[:, 0] <= row) & (following[:, 0] > row)
        down = (line[:, 0] > row) & (following[:, 0] <= row)
        cut = up | down
        if not cut.any():
            continue
        a, b = line[cut], following[cut]
        crossings = a[:, 1] + (row - a[:, 0]) / (b[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
        order = np.argsort(crossings)
        winding = np.concatenate([[0], np.where(up[cut], 1, -1)[order].cumsum()])
        inside[n] = winding[np.searchsorted(crossings[order], columns, side="right")] != 0
    return inside
