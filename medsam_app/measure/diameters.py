"""Longest diameter of an object within a slice, and the one perpendicular to it.

Radiologists measure lesions this way. The ends of a diameter are midpoints of pixel edges between inside and
outside: half a voxel beyond the centres of the outermost voxels. So a row of n voxels has a length of n
voxels, and a single voxel the length of its longer side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch

#: RAS axis perpendicular to each plane.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
#: Two voxel indices (i, j, k) of the file, in halves of a voxel or finer.
Ends = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Diameter:
    """Longest diameter among all slices of a plane.

    Attributes:
        plane: "axial", "coronal" or "sagittal"; the file's slices closest to that plane are measured.
        slice: index of the slice, from 0, along the file's axis perpendicular to the plane.
        length_mm: distance in mm between the two points of the slice that are farthest apart.
        ends: these two points.
        across_mm: length in mm of the longest chord of the slice's convex hull perpendicular to the diameter.
        across_ends: ends of that chord.
    """

    plane: str
    slice: int
    length_mm: float
    ends: Ends
    across_mm: float
    across_ends: Ends


def longest_diameter(patch: Patch, grid: Grid, plane: str) -> Diameter | None:
    """Return the exact longest diameter of a mask in a plane, or None for an empty mask.

    All parts of the mask in a slice count as one object.

    Args:
        patch: the mask.
        grid: the volume's grid.
        plane: one of `PLANES`.
    """
    axis = grid.ras.axes[PLANES[plane]]
    in_plane = [a for a in range(3) if a != axis]
    # Conversion to mm within the slice, also correct for oblique and sheared affines.
    to_mm = np.linalg.qr(grid.affine[:3, in_plane])[1]
    best: tuple[float, int, NDArray, NDArray] | None = None
    for bound, number, inside in _slices(patch.mask, axis, to_mm):
        if best is not None and bound <= best[0]:
            break  # all remaining slices have smaller bounds
        points = sides(inside)
        hull = points[ConvexHull(points @ to_mm.T).vertices]
        distances = squareform(pdist(hull @ to_mm.T))
        pair = np.unravel_index(int(distances.argmax()), distances.shape)
        if best is None or distances[pair] > best[0]:
            best = float(distances[pair]), number, hull, hull[list(pair)]
    if best is None:
        return None
    length, number, hull, ends = best
    across, across_ends = _across(hull, ends, to_mm)

    def to_file(pair: NDArray) -> Ends:
        ijk = np.empty((2, 3))
        ijk[:, axis] = number
        ijk[:, in_plane] = pair
        first, second = (ijk + patch.start).tolist()
        return tuple(first), tuple(second)

    return Diameter(plane, number + patch.start[axis], length, to_file(ends), across, to_file(across_ends))


def sides(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the (n, 2) midpoints of pixel edges between inside and outside of a (b, c) slice.

    They are in voxel indices. Pixels beyond the slice count as outside.
    """
    padded = np.pad(inside, 1)
    midpoints = []
    for axis in range(2):
        edges = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64) - 1
        edges[:, axis] += 0.5
        midpoints.append(edges)
    return np.concatenate(midpoints)


def _slices(
    mask: NDArray[np.bool_], axis: int, to_mm: NDArray[np.float64]
) -> Iterator[tuple[float, int, NDArray[np.bool_]]]:
    """Yield non-empty slices with an upper bound of their diameter (mm), largest first."""
    stack = np.moveaxis(mask, axis, 0)
    bounds = []
    for number, inside in enumerate(stack):
        spans = [np.flatnonzero(inside.any(axis=axis_2d)) for axis_2d in (1, 0)]
        if len(spans[0]):
            b, c = (float(span[-1] - span[0] + 1) for span in spans)
            diagonals = np.array([[b, c], [b, -c]]) @ to_mm.T
            bounds.append((float(np.linalg.norm(diagonals, axis=1).max()), number))
    for bound, number in sorted(bounds, reverse=True):
        yield bound, number, stack[number]


def _across(hull: NDArray, ends: NDArray, to_mm: NDArray[np.float64]) -> tuple[float, NDArray]:
    """Return the length in mm and the ends of a convex polygon's longest chord perpendicular to a diameter.

    The chord's length is linear between corners, so the longest chord passes through a corner.
    """
    points = (hull - ends[0]) @ to_mm.T
    along = (ends[1] - ends[0]) @ to_mm.T
    along /= np.linalg.norm(along)
    normal = np.array([-along[1], along[0]])
    u, v = points @ along, points @ normal
    upper, lower = (_chain(u, sign * v) for sign in (1, -1))
    tops, bottoms = np.interp(u, *upper), -np.interp(u, *lower)
    widest = int((tops - bottoms).argmax())
    mm = np.array([u[widest] * along + height * normal for height in (bottoms[widest], tops[widest])])
    return float(tops[widest] - bottoms[widest]), ends[0] + mm @ np.linalg.inv(to_mm).T


def _chain(u: NDArray, v: NDArray) -> tuple[NDArray, NDArray]:
    """Return the part of a convex polygon with the larger v, from its first to its last corner along u."""
    order = np.lexsort((-v, u))
    u, v = u[order], v[order]
    line = np.interp(u, u[[0, -1]], v[[0, -1]])
    upper = v >= line - 1e-9 * (1 + np.abs(line))
    u, v = u[upper], v[upper]
    first = np.concatenate([[True], np.diff(u) > 0])  # of several points at the same u, keep the highest
    return u[first], v[first]
