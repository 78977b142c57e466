"""A volume as a pile of upright slices, and logits on some of them.

Slices are shown as a radiologist sees them whatever the file's order: the patient's right on the left,
front or head up (in sagittal slices the front on the left), which is how 2D models have seen them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index
from medsam_app.grid.roi import Roi
from medsam_app.predict.core.constraints import EXCLUDED

#: Spacings that differ by less than this are the same.
SAME_SPACING = 1.01
#: Pixels kept around a slice's mask: the logits there say how sure its outline is.
MARGIN = 8


def acquisition_axis(grid: Grid) -> int:
    """Return the RAS axis perpendicular to the acquired slices: that of the coarsest spacing.

    Among equally coarse axes it is the one nearest to head-feet, then to front-back.
    """
    spacing = grid.ras.spacing
    return max(axis for axis in range(3) if spacing[axis] * SAME_SPACING >= spacing.max())


@dataclass(frozen=True, eq=False)
class SliceStack:
    """The slices of a grid along one axis, as (slice, row, column).

    Attributes:
        grid: the volume's grid.
        axis: the RAS axis across the slices.
    """

    grid: Grid
    axis: int

    @property
    def order(self) -> Index:
        """The RAS axes along slices, rows and columns."""
        columns, rows = (each for each in range(3) if each != self.axis)
        return self.axis, rows, columns

    @property
    def shape(self) -> Index:
        """Slices, rows and columns."""
        a, b, c = (self.grid.ras.shape[axis] for axis in self.order)
        return a, b, c

    @property
    def spacing(self) -> NDArray[np.float64]:
        """(3,) mm from slice to slice, row to row and column to column."""
        return self.grid.ras.spacing[list(self.order)]

    def from_file(self, array: NDArray) -> NDArray:
        """View of an (i, j, k) array as (slice, row, column); no copy."""
        return np.flip(self.grid.ras.from_file(array)).transpose(self.order)

    def points(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices of the file to (..., 3) slice, row and column."""
        ras = self.grid.ras
        return (np.asarray(ras.shape) - 1 - ras.points_from_file(ijk))[..., list(self.order)]

    def to_roi(self, start: ArrayLike, values: NDArray) -> tuple[torch.Tensor, Roi]:
        """A part of the pile as a window in the volume's own spacing.

        Args:
            start: (3,) first slice, row and column.
            values: (slices, rows, columns) of the part.

        Returns:
            (X, Y, Z) the values along the RAS axes, and the window.
        """
        back = np.argsort(self.order)
        moved = np.flip(values.transpose(back))
        ras = self.grid.ras
        origin = np.asarray(ras.shape) - np.asarray(start)[back] - moved.shape
        roi = Roi(tuple(map(float, origin)), tuple(map(float, ras.spacing)), moved.shape, ras)  # type: ignore[arg-type]
        return torch.from_numpy(np.ascontiguousarray(moved)), roi

    def from_roi(self, values: torch.Tensor, roi: Roi) -> tuple[Index, NDArray]:
        """Return the inverse of `to_roi` for a window from it, along any axis."""
        part = np.flip(values.numpy()).transpose(self.order)
        first = np.asarray(self.grid.ras.shape) - np.round(roi.origin).astype(int) - roi.shape
        a, b, c = (int(first[axis]) for axis in self.order)
        return (a, b, c), part


class SliceLogits:
    """Logits of some slices, of each only as much as holds its mask; far below zero beyond.

    Args:
        size: rows and columns of a slice.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._parts: dict[int, tuple[tuple[int, int], NDArray[np.float32]]] = {}

    @classmethod
    def of(cls, size: tuple[int, int], start: Index, values: NDArray[np.float32]) -> SliceLogits:
        """Return the logits of a part (slices, rows, columns) of the stack."""
        found = cls(size)
        for n, part in enumerate(values):
            if (part > 0).any():
                found._parts[start[0] + n] = (start[1], start[2]), part
        return found

    @property
    def slices(self) -> list[int]:
        """The slices with a mask, in order."""
        return sorted(self._parts)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """(rows, columns) logits of a whole slice."""
        out = np.full(self.size, EXCLUDED, dtype=np.float32)
        if index in self._parts:
            (row, column), part = self._parts[index]
            out[row : row + part.shape[0], column : column + part.shape[1]] = part
        return out

    def __setitem__(self, index: int, logits: NDArray[np.float32]) -> None:
        """Store a slice's (rows, columns) logits around its mask, if it has one."""
        self.drop(index)
        rows, columns = np.nonzero((logits > 0).any(axis=1))[0], np.nonzero((logits > 0).any(axis=0))[0]
        if len(rows):
            row, column = max(0, rows[0] - MARGIN), max(0, columns[0] - MARGIN)
            part = logits[row : rows[-1] + 1 + MARGIN, column : columns[-1] + 1 + MARGIN]
            self._parts[index] = (int(row), int(column)), part.copy()

    def drop(self, index: int) -> None:
        """Forget a slice."""
        self._parts.pop(index, None)

    def voxels(self, index: int) -> int:
        """Pixels of a slice's mask."""
        return int((self._parts[index][1] > 0).sum()) if index in self._parts else 0

    def dense(
        self, shape: Index, points: NDArray[np.float64], room: int
    ) -> tuple[Index, NDArray[np.float32]]:
        """The smallest part of the pile that holds all masks and some room around points.

        Args:
            shape: of the whole pile.
            points: (N, 3) slices, rows and columns; at least one where there is no mask.
            room: voxels around a point.

        Returns:
            its first slice, row and column, and its (slices, rows, columns) logits.
        """
        corners = [np.round(points) - room, np.round(points) + room]
        for index, ((row, column), part) in self._parts.items():
            last = (index, row + part.shape[0] - 1, column + part.shape[1] - 1)
            corners.append(np.array([(index, row, column), last]))
        both = np.clip(np.concatenate(corners), 0, np.asarray(shape) - 1).astype(int)
        low, high = both.min(axis=0), both.max(axis=0)
        out = np.full(high - low + 1, EXCLUDED, dtype=np.float32)
        for index, ((row, column), part) in self._parts.items():
            place = slice(row - low[1], row - low[1] + part.shape[0])
            out[index - low[0], place, column - low[2] : column - low[2] + part.shape[1]] = part
        return (int(low[0]), int(low[1]), int(low[2])), out
