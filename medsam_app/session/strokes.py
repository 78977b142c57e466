"""Voxels of brush strokes and lassos.

Places are voxel indices (i, j, k) of the file and may lie outside the volume, where they draw nothing.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch, box_slices
from medsam_app.prompts.types import Scribble

#: Millimetres that rounding may take from a distance.
_SLACK = 1e-3


def brush_stroke(points: ArrayLike, radius: float, grid: Grid, *, axis: int | None = None) -> Patch:
    """The voxels that a brush goes over.

    Args:
        points: (N, 3) corners of the stroke.
        radius: of the brush, in mm; voxels on the line itself are drawn however small it is.
        grid: the volume's grid.
        axis: the stroke is drawn on the slice across this axis that it begins on; None for a ball.

    Raises:
        PromptError: nothing of it lies in the volume.
    """
    corners = _within_reach(points, grid)
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
        part = mask[box_slices(first, stop, low)]
        part |= _near(a, b, first, stop, spacing) <= (radius + _SLACK) ** 2
    on_line = Scribble(coordinates=tuple(map(tuple, corners.tolist()))).voxels(grid.shape)
    inside = ((on_line >= low) & (on_line <= high)).all(axis=1) & _beside(on_line, corners)
    mask[tuple((on_line[inside] - low).T)] = True
    return Patch((int(low[0]), int(low[1]), int(low[2])), mask)


def _within_reach(points: ArrayLike, grid: Grid) -> NDArray[np.float64]:
    """(N, 3) corners, those far outside the volume pulled in: no hand draws there."""
    shape = np.asarray(grid.shape, dtype=float)
    return np.clip(np.asarray(points, dtype=float).reshape(-1, 3), -shape, 2 * shape)


def _beside(voxels: NDArray[np.intp], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which voxels of a line were not only pulled in from outside the volume."""
    return ((voxels >= corners.min(axis=0) - 0.5) & (voxels <= corners.max(axis=0) + 0.5)).all(axis=1)


def _near(
    a: NDArray, b: NDArray, first: NDArray[np.int_], stop: NDArray[np.int_], spacing: NDArray
) -> NDArray[np.float64]:
    """Squared distance in mm of the voxels from `first` to `stop` to the line from a to b."""
    axes = [(np.arange(x, y) - c) * mm for x, y, c, mm in zip(first, stop, a, spacing, strict=True)]
    u, v, w = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    line = (b - a) * spacing
    length = float(line @ line)
    along = (u * line[0] + v * line[1] + w * line[2]) / length if length else np.zeros(1)
    at = np.clip(along, 0, 1)
    return (u - at * line[0]) ** 2 + (v - at * line[1]) ** 2 + (w - at * line[2]) ** 2


def lasso(points: ArrayLike, grid: Grid, *, axis: int) -> Patch:
    """The voxels of a slice whose middles a closed line goes around, however often it crosses itself.

    Args:
        points: (N, 3) corners of the line; its end is joined to its beginning.
        grid: the volume's grid.
        axis: the axis across the slice; which one, the first point says.

    Raises:
        PromptError: nothing of the volume lies within.
    """
    corners = _within_reach(points, grid)
    index = int(np.floor(corners[0, axis] + 0.5))
    u, v = (n for n in range(3) if n != axis)
    line = corners[:, [u, v]]
    low = np.maximum(np.ceil(line.min(axis=0)), 0).astype(int)
    high = np.minimum(np.floor(line.max(axis=0)), np.array(grid.shape)[[u, v]] - 1).astype(int)
    if (low > high).any() or not 0 <= index < grid.shape[axis]:
        raise PromptError("That lasso holds no voxel of the image; draw around at least one.")
    inside = _around(line, np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    if not inside.any():
        raise PromptError("That lasso holds no voxel of the image; draw around at least one.")
    start = [0, 0, 0]
    start[axis], start[u], start[v] = index, int(low[0]), int(low[1])
    return Patch((start[0], start[1], start[2]), np.expand_dims(inside, axis))


def _around(
    line: NDArray[np.float64], rows: NDArray[np.int_], columns: NDArray[np.int_]
) -> NDArray[np.bool_]:
    """(rows, columns) whether a closed line winds around a place, by the crossings to its right."""
    following = np.roll(line, -1, axis=0)
    inside = np.zeros((len(rows), len(columns)), dtype=bool)
    for n, row in enumerate(rows):
        up = (line[:, 0] <= row) & (following[:, 0] > row)
        down = (line[:, 0] > row) & (following[:, 0] <= row)
        cut = up | down
        if not cut.any():
            continue
        a, b = line[cut], following[cut]
        where = a[:, 1] + (row - a[:, 0]) / (b[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
        order = np.argsort(where)
        winding = np.concatenate([[0], np.where(up[cut], 1, -1)[order].cumsum()])
        inside[n] = winding[np.searchsorted(where[order], columns, side="right")] != 0
    return inside
