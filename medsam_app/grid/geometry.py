"""Grids, orientations and the mapping between a file's voxels and the model's.

Everything here is NumPy and exact: axes are permuted and flipped to the order closest to RAS for the model,
and mapped back without loss. Affines map voxel indices (i, j, k) to mm in RAS+ (nibabel's convention).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel.orientations as nio
import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Two grids are the same when no corner of the volume moves by more than this fraction of a voxel.
GRID_TOLERANCE = 1e-2
#: Conversion of world coordinates between DICOM and ITK (LPS+) and NIfTI (RAS+); it is its own inverse.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a volume.

    Attributes:
        shape: voxels along (i, j, k).
        affine: (4, 4) float64, voxel indices to mm in RAS+.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @cached_property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel size (3,) in mm along (i, j, k)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @property
    def orientation(self) -> str:
        """Closest axis codes, for example 'RAS' or 'LPS'."""
        return "".join(nio.aff2axcodes(self.affine))

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_world(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices to (..., 3) mm in RAS+."""
        ijk = np.asarray(ijk, dtype=np.float64)
        return ijk @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, xyz: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) mm in RAS+ to (..., 3) voxel indices (fractional)."""
        xyz = np.asarray(xyz, dtype=np.float64)
        return (xyz - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def contains(self, ijk: ArrayLike) -> NDArray[np.bool_]:
        """Return (...,) whether (..., 3) voxel indices lie in the volume, including the outer half voxels."""
        ijk = np.asarray(ijk, dtype=np.float64)
        return np.all((ijk >= -0.5) & (ijk <= np.asarray(self.shape) - 0.5), axis=-1)

    def difference(self, other: Grid) -> str | None:
        """Return a description of the difference from another grid, or None if the grids are the same."""
        if tuple(self.shape) != tuple(other.shape):
            return f"shape {tuple(other.shape)} instead of {tuple(self.shape)}"
        corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners = corners * (np.asarray(self.shape) - 1)
        offset = np.linalg.norm(self.to_world(corners) - other.to_world(corners), axis=1).max()
        if offset > GRID_TOLERANCE * self.spacing.min():
            if other.orientation != self.orientation:
                return f"orientation {other.orientation} instead of {self.orientation}"
            if not np.allclose(other.spacing, self.spacing, rtol=1e-3):
                return f"spacing {format_mm(other.spacing)} instead of {format_mm(self.spacing)}"
            return f"voxels up to {offset:.2f} mm away from where the image has them"
        return None

    @cached_property
    def ras(self) -> RasView:
        """Mapping to and from the axis order closest to RAS."""
        return RasView.of(self)


@dataclass(frozen=True, eq=False)
class RasView:
    """Lossless permutation and flips that bring a grid closest to RAS+.

    Attributes:
        axes: (3,) for each RAS axis, the parallel axis of the file.
        flips: (3,) for each RAS axis, whether the file's axis points the other way.
        shape: voxels along the RAS axes.
        spacing: (3,) mm along the RAS axes.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    spacing: NDArray[np.float64]

    @classmethod
    def of(cls, grid: Grid) -> RasView:
        """Return the view of a grid."""
        ornt = nio.io_orientation(grid.affine)
        if np.isnan(ornt).any():
            raise ValueError("singular affine")
        axes = tuple(int(np.flatnonzero(ornt[:, 0] == axis)[0]) for axis in range(3))
        flips = tuple(bool(ornt[axis, 1] < 0) for axis in axes)
        shape = tuple(int(grid.shape[axis]) for axis in axes)
        return cls(axes, flips, shape, grid.spacing[list(axes)])  # type: ignore[arg-type]

    def from_file(self, array: NDArray) -> NDArray:
        """Return a view of an (i, j, k) array with its axes in RAS order."""
        return np.flip(array.transpose(self.axes), tuple(a for a in range(3) if self.flips[a]))

    def to_file(self, array: NDArray) -> NDArray:
        """Return a view of a RAS-ordered array with its axes in the file's order; inverse of `from_file`."""
        flipped = np.flip(array, tuple(a for a in range(3) if self.flips[a]))
        return flipped.transpose(tuple(int(a) for a in np.argsort(self.axes)))

    def points_from_file(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices of the file to voxel indices of the RAS-ordered array."""
        points = np.asarray(ijk, dtype=np.float64)[..., list(self.axes)].copy()
        for axis in range(3):
            if self.flips[axis]:
                points[..., axis] = self.shape[axis] - 1 - points[..., axis]
        return points

    def points_to_file(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices of the RAS-ordered array to those of the file."""
        ras = np.array(points, dtype=np.float64)
        for axis in range(3):
            if self.flips[axis]:
                ras[..., axis] = self.shape[axis] - 1 - ras[..., axis]
        return ras[..., [int(a) for a in np.argsort(self.axes)]]


def flip_affine(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert a (4, 4) affine to mm in LPS into one to mm in RAS, or back."""
    return LPS_TO_RAS @ affine


def flip_points(points: ArrayLike) -> NDArray[np.float64]:
    """Convert (..., 3) points or directions in mm from LPS to RAS, or back."""
    return np.asarray(points, dtype=np.float64) * LPS_TO_RAS.diagonal()[:3]


def format_mm(values: ArrayLike) -> str:
    """Format millimetres for a message: '0.70 x 0.70 x 2.00 mm'."""
    return " x ".join(f"{v:.2f}" for v in np.asarray(values, dtype=float)) + " mm"


#: Margin around a mask in an image: fraction of the mask's extent, and least number of pixels.
_MARGIN, _MIN_MARGIN = 0.4, 8


def padded_bounds(drawn: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the bounding box of a non-empty (rows, columns) mask, enlarged by a margin."""
    spans = []
    for axis, size in enumerate(drawn.shape):
        indices = np.flatnonzero(drawn.any(axis=1 - axis))
        low, high = int(indices[0]), int(indices[-1]) + 1
        margin = max(_MIN_MARGIN, round(_MARGIN * (high - low)))
        spans.append(slice(max(0, low - margin), min(size, high + margin)))
    return spans[0], spans[1]
