"""A volume as a stack of upright slices, and logits on some of them.

Slices are oriented in the radiological convention, whatever the file's order: the patient's right on the
left, anterior or head up, and in sagittal slices anterior on the left. 2D models were trained on such slices.
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

#: Spacings that differ by less than this factor count as equal.
SAME_SPACING = 1.01
#: Pixels stored around a slice's mask: the logits there show how certain its outline is.
MARGIN = 8


def acquisition_axis(grid: Grid) -> int:
    """Return the RAS axis perpendicular to the acquired slices: the one with the coarsest spacing.

    Among equally coarse axes, superior-inferior comes before anterior-posterior, then left-right.
    """
    spacing = grid.ras.spacing
    return max(axis for axis in range(3) if spacing[axis] * SAME_SPACING >= spacing.max())


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Slices of a grid along one axis, as (slice, row, column).

    Attributes:
        grid: the volume's grid.
        axis: the RAS axis perpendicular to the slices.
    """

    grid: Grid
    axis: int

    @property
    def order(self) -> Index:
        """The RAS axes along slices, rows and columns."""
        columns, rows = (axis for axis in range(3) if axis != self.axis)
        return self.axis, rows, columns

    @property
    def shape(self) -> Index:
        """Number of slices, rows and columns."""
        a, b, c = (self.grid.ras.shape[axis] for axis in self.order)
        return a, b, c

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Distance (3,) in mm between slices, between rows and between columns."""
        return self.grid.ras.spacing[list(self.order)]

    def from_file(self, array: NDArray) -> NDArray:
        """Return a view of an (i, j, k) array as (slice, row, column)."""
        return np.flip(self.grid.ras.from_file(array)).transpose(self.order)

    def points(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices of the file to (..., 3) slice, row and column."""
        ras = self.grid.ras
        return (np.asarray(ras.shape) - 1 - ras.points_from_file(ijk))[..., list(self.order)]

    def to_roi(self, start: ArrayLike, values: NDArray) -> tuple[torch.Tensor, Roi]:
        """Return a part of the stack as a window in the volume's own spacing.

        Args:
            start: (3,) first slice, row and column.
            values: (slices, rows, columns) of the part.

        Returns:
            (X, Y, Z) values along the RAS axes, and the window.
        """
        back = np.argsort(self.order)
        moved = np.flip(values.transpose(back))
        ras = self.grid.ras
        origin = np.asarray(ras.shape) - np.asarray(start)[back] - moved.shape
        roi = Roi(tuple(map(float, origin)), tuple(map(float, ras.spacing)), moved.shape, ras)  # type: ignore[arg-type]
        return torch.from_numpy(np.ascontiguousarray(moved)), roi

    def from_roi(self, values: torch.Tensor, roi: Roi) -> tuple[Index, NDArray]:
        """Return the first slice, row and column of a window from `to_roi`, and its values: the inverse.

        The stack may have another axis than the one that made the window.
        """
        part = np.flip(values.numpy()).transpose(self.order)
        first = np.asarray(self.grid.ras.shape) - np.round(roi.origin).astype(int) - roi.shape
        a, b, c = (int(first[axis]) for axis in self.order)
        return (a, b, c), part


class SliceLogits:
    """Logits of the slices that have a mask, stored around the mask only; far below zero elsewhere.

    Args:
        size: rows and columns of a slice.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._parts: dict[int, tuple[tuple[int, int], NDArray[np.float32]]] = {}

    @classmethod
    def of(cls, size: tuple[int, int], start: Index, values: NDArray[np.float32]) -> SliceLogits:
        """Return the logits of a part (slices, rows, columns) of the stack."""
        slice_logits = cls(size)
        for n, part in enumerate(values):
            if (part > 0).any():
                slice_logits._parts[start[0] + n] = (start[1], start[2]), part
        return slice_logits

    @property
    def slices(self) -> list[int]:
        """Indices of the slices with a mask, in order."""
        return sorted(self._parts)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """Return the (rows, columns) logits of a complete slice."""
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
        """Remove the mask and logits of a slice."""
        self._parts.pop(index, None)

    def voxels(self, index: int) -> int:
        """Return the number of pixels in a slice's mask."""
        return int((self._parts[index][1] > 0).sum()) if index in self._parts else 0

    def dense(
        self, shape: Index, points: NDArray[np.float64], room: int
    ) -> tuple[Index, NDArray[np.float32]]:
        """Return the smallest part of the stack that holds all masks and a margin around points.

        Args:
            shape: slices, rows and columns of the stack.
            points: (N, 3) slice, row and column; at least one point if there is no mask.
            room: margin around a point in voxels.

        Returns:
            The first slice, row and column of the part, and its (slices, rows, columns) logits.
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
