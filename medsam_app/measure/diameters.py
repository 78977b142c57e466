"""The longest diameter of an object within a slice and the one across it, as radiologists measure lesions.

The ends of a diameter are middles of pixel sides that part inside from outside: half a voxel beyond the
centres of the outermost voxels. So a row of n voxels is n voxels long, and a single voxel as long as its
longer side.
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

#: The axis closest to RAS that runs through each plane.
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
#: Two voxel indices (i, j, k) of the file, in halves of a voxel or finer.
Ends = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Diameter:
    """The longest diameter of all slices of a plane.

    Attributes:
        plane: "axial", "coronal" or "sagittal": the slices of the file that are closest to it.
        slice: index of the slice, from 0, along the axis of the file that runs through the plane.
        length_mm: between the two points of the slice that are farthest from each other.
        ends: these two.
        across_mm: the longest chord of the slice's convex hull at a right angle to it.
        across_ends: of that chord.
    """

    plane: str
    slice: int
    length_mm: float
    ends: Ends
    across_mm: float
    across_ends: Ends


def longest_diameter(patch: Patch, grid: Grid, plane: str) -> Diameter | None:
    """The longest diameter of a mask in a plane, exact; None of an empty mask.

    All that a slice holds counts as one, in how many parts it may be.

    Args:
        patch: the mask.
        grid: the volume's grid.
        plane: one of `PLANES`.
    """
    axis = grid.ras.axes[PLANES[plane]]
    others = [other for other in range(3) if other != axis]
    # Millimetres within the slice: right under oblique and sheared affines too.
    to_mm = np.linalg.qr(grid.affine[:3, others])[1]
    best: tuple[float, int, NDArray, NDArray] | None = None
    for bound, number, inside in _slices(patch.mask, axis, to_mm):
        if best is not None and bound <= best[0]:
            break  # what is left is smaller than that
        points = sides(inside)
        hull = points[ConvexHull(points @ to_mm.T).vertices]
        apart = squareform(pdist(hull @ to_mm.T))
        pair = np.unravel_index(int(apart.argmax()), apart.shape)
        if best is None or apart[pair] > best[0]:
            best = float(apart[pair]), number, hull, hull[list(pair)]
    if best is None:
        return None
    length, number, hull, ends = best
    across, across_ends = _across(hull, ends, to_mm)

    def place(pair: NDArray) -> Ends:
        ijk = np.empty((2, 3))
        ijk[:, axis] = number
        ijk[:, others] = pair
        first, second = (ijk + patch.start).tolist()
        return tuple(first), tuple(second)

    return Diameter(plane, number + patch.start[axis], length, place(ends), across, place(across_ends))


def sides(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) middles of the pixel sides between inside and outside of a (b, c) slice, in voxel indices.

    Beyond the slice is outside.
    """
    padded = np.pad(inside, 1)
    found = []
    for axis in range(2):
        where = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64) - 1
        where[:, axis] += 0.5
        found.append(where)
    return np.concatenate(found)


def _slices(
    mask: NDArray[np.bool_], axis: int, to_mm: NDArray[np.float64]
) -> Iterator[tuple[float, int, NDArray[np.bool_]]]:
    """Yield non-empty slices with an upper bound of their diameter (mm), largest first."""
    stack = np.moveaxis(mask, axis, 0)
    bounds = []
    for number, inside in enumerate(stack):
        spans = [np.flatnonzero(inside.any(axis=other)) for other in (1, 0)]
        if len(spans[0]):
            b, c = (float(span[-1] - span[0] + 1) for span in spans)
            diagonals = np.array([[b, c], [b, -c]]) @ to_mm.T
            bounds.append((float(np.linalg.norm(diagonals, axis=1).max()), number))
    for bound, number in sorted(bounds, reverse=True):
        yield bound, number, stack[number]


def _across(hull: NDArray, ends: NDArray, to_mm: NDArray[np.float64]) -> tuple[float, NDArray]:
    """Length in mm and ends of a convex polygon's longest chord at a right angle to a diameter.

    The chord's length is linear between corners, so the longest one goes through a corner.
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
    """The part of a convex polygon from its first to its last corner along u that has the larger v."""
    order = np.lexsort((-v, u))
    u, v = u[order], v[order]
    line = np.interp(u, u[[0, -1]], v[[0, -1]])
    kept = v >= line - 1e-9 * (1 + np.abs(line))
    u, v = u[kept], v[kept]
    first = np.concatenate([[True], np.diff(u) > 0])  # of several at one place the highest
    return u[first], v[first]
