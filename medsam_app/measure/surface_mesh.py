"""Surface of a mask as triangles in millimetres.

The surface is extracted by marching cubes (scikit-image) from a smoothed mask. The smoothed values are
clamped so that the surface still separates the voxels inside from those outside, and thin structures are
preserved. If there are more triangles than allowed, the mask is sampled on a coarser grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch

#: Most triangles of a surface.
MOST_TRIANGLES = 150_000
#: Standard deviation of the smoothing, in voxels of the sampled grid.
_SIGMA = 0.8
#: Least difference from the surface's level 0.5 after smoothing.
_MIN_CONTRAST = 0.02


@dataclass(frozen=True, eq=False)
class Surface:
    """A closed surface; empty for an empty mask.

    Attributes:
        vertices: (n, 3) float32, mm in RAS+.
        triangles: (m, 3) uint32, indices of vertices, counter-clockwise as seen from outside.
    """

    vertices: NDArray[np.float32]
    triangles: NDArray[np.uint32]

    @property
    def area_mm2(self) -> float:
        """Sum of the triangles' areas."""
        a, b, c = self._corners()
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    @property
    def volume_ml(self) -> float:
        """Enclosed volume in millilitres; negative if the surface is inside out."""
        a, b, c = self._corners()
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6000)

    def _corners(self) -> tuple[NDArray, NDArray, NDArray]:
        # Centre the points, to avoid cancellation errors far from the origin.
        points = self.vertices.astype(np.float64)
        points -= points.mean(axis=0) if len(points) else 0
        a, b, c = (points[self.triangles[:, n]] for n in range(3))
        return a, b, c


def surface_of(patch: Patch, grid: Grid, *, most: int = MOST_TRIANGLES) -> Surface:
    """Return the surface of a mask.

    Args:
        patch: the mask.
        grid: the volume's grid.
        most: most triangles. A mask that needs more is sampled on a coarser grid and loses details smaller
            than its voxels.
    """
    patch = patch.tight()
    if not patch.mask.size:
        return Surface(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint32))
    mask = np.pad(patch.mask, 2)
    first = np.asarray(patch.start) - 2
    side = _coarse_side(mask, grid.spacing, most)
    while True:
        field, step = _field(mask, np.maximum(1, side / grid.spacing))
        vertices, triangles = _extract(field)
        if len(triangles) <= most:
            break
        side = max(side, float(grid.spacing.min())) * 1.15
    points = grid.to_world(first + vertices * step)
    if np.linalg.det(grid.affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    return Surface(points.astype(np.float32), np.ascontiguousarray(triangles, dtype=np.uint32))


def _coarse_side(mask: NDArray[np.bool_], spacing: NDArray[np.float64], most: int) -> float:
    """Return the side in mm of the finest voxels with few enough triangles; 0 for the mask's own grid.

    A face between inside and outside gives up to two triangles. On a coarser grid, the number of faces
    decreases by the ratio of the spacings along both of their sides.
    """
    faces = np.array([np.count_nonzero(np.diff(mask, axis=axis)) for axis in range(3)])

    def expected(side: float) -> float:
        shrink = spacing / np.maximum(spacing, side)
        return float(sum(2 * faces[a] * shrink[a - 1] * shrink[a - 2] for a in range(3)))

    side = 0.0
    while expected(side) > most:
        side = max(side, float(spacing.min())) * 1.05
    return side


def _field(
    mask: NDArray[np.bool_], step: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the smoothed mask, above 0.5 inside, on a grid with `step` voxels of spacing, and `step`."""
    values = mask.astype(np.float32)
    ndimage.gaussian_filter(values, _SIGMA * step, output=values, mode="constant", truncate=3)
    np.maximum(values, 0.5 + _MIN_CONTRAST, out=values, where=mask)
    np.minimum(values, 0.5 - _MIN_CONTRAST, out=values, where=~mask)
    if (step == 1).all():
        return values, step
    shape = tuple(int(n) for n in np.ceil((np.array(mask.shape) - 1) / step) + 1)
    coarse = ndimage.affine_transform(values, step, output_shape=shape, order=1, mode="constant")
    for axis in range(3):  # so that the surface is closed
        np.moveaxis(coarse, axis, 0)[[0, -1]] = 0
    return coarse, step


def _extract(field: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    from skimage.measure import marching_cubes

    if field.max() <= 0.5:  # the mask is thinner than the grid's spacing
        return np.zeros((0, 3)), np.zeros((0, 3), np.uint32)
    vertices, triangles, _, _ = marching_cubes(field, 0.5, gradient_direction="ascent")
    return vertices.astype(np.float64), triangles
