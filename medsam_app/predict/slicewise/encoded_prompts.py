"""Prompts of a volume in coordinates of its slices, for 2D models."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.predict.core.constraints import BOX_TOLERANCE
from medsam_app.predict.core.engine import Prompts
from medsam_app.predict.slicewise.stack import SliceStack, acquisition_axis
from medsam_app.prompts.types import Box, Point

#: Row and column of a click, and whether it is positive.
Click = tuple[NDArray[np.float64], bool]


def slice_axis(prompts: Prompts, grid: Grid) -> int:
    """Return the RAS axis across the slices: that of the last flat box, else the acquisition axis."""
    flat = [prompt.slice_axis for prompt in prompts if isinstance(prompt, Box)]
    flat = [axis for axis in flat if axis is not None]
    return grid.ras.axes.index(flat[-1]) if flat else acquisition_axis(grid)


class SlicePrompts:
    """Prompts in coordinates (slice, row, column).

    Attributes:
        key: slice of the newest prompt.
        keys: slices of the prompts that locate the object; mask prompts and flat boxes across another axis
            have none.
        outside: slices of negative clicks.
        rectangle: (4,) first row, first column, last row, last column of the newest prompt if it is a box,
            else None.
        slices: first and last slice that the 3D boxes allow.

    Args:
        stack: the slices of the volume.
        prompts: in voxel indices of the file; the newest is not a mask.
    """

    def __init__(self, stack: SliceStack, prompts: Prompts) -> None:
        self._size, self._spacing = stack.shape[1:], stack.spacing
        self._clicks: dict[int, list[Click]] = {}
        self._flat: dict[int, list[NDArray[np.float64]]] = {}
        hull: list[NDArray[np.float64]] = []
        self.keys: set[int] = set()
        self.outside: set[int] = set()
        self.key = 0
        for prompt in prompts:
            self.rectangle: NDArray[np.float64] | None = None
            if isinstance(prompt, Point):
                at = np.clip(stack.points(prompt.coordinates), 0, np.asarray(stack.shape) - 1)
                self.key = int(np.floor(at[0] + 0.5))
                self._clicks.setdefault(self.key, []).append((at[1:], prompt.positive))
                (self.keys if prompt.positive else self.outside).add(self.key)
                continue
            elif isinstance(prompt, Box):
                corners = stack.points([prompt.lower, prompt.upper])
                corners = np.stack([corners.min(axis=0), corners.max(axis=0)])
                self.rectangle = corners[:, 1:].flatten()
                if prompt.slice_axis is None:
                    self.key = int(np.floor(corners[:, 0].mean() + 0.5))
                    hull.append(corners)
                elif stack.grid.ras.axes[stack.axis] == prompt.slice_axis:
                    self.key = int(np.floor(corners[0, 0] + 0.5))
                    self._flat.setdefault(self.key, []).append(self.rectangle)
                else:
                    continue
            else:
                continue
            self.keys.add(self.key)
        self.slices = (0, stack.shape[0] - 1)
        self._hull: NDArray[np.float64] | None = None
        if hull:
            self._limit(hull, stack)

    def _limit(self, boxes: list[NDArray[np.float64]], stack: SliceStack) -> None:
        """Limit the slices to the 3D boxes, extended to include positive clicks outside them."""
        positive = [(n, *at) for n, clicks in self._clicks.items() for at, inside in clicks if inside]
        inside = np.reshape(positive, (-1, 3))
        low, high = np.min(boxes, axis=(0, 1)), np.max(boxes, axis=(0, 1))
        slack = BOX_TOLERANCE * (high - low)
        corners = np.concatenate([[low - slack, high + slack], inside])
        self._hull = np.stack([corners.min(axis=0), corners.max(axis=0)])
        reach = np.concatenate([[low, high], inside])[:, 0]
        first, last = int(np.floor(reach.min() + 0.5)), int(np.floor(reach.max() + 0.5))
        self.slices = (max(0, first), min(stack.shape[0] - 1, last))

    def clicks(self, index: int) -> list[Click]:
        """Return the clicks on a slice, in the order they were given."""
        return self._clicks.get(index, [])

    def nearest_key(self, index: int, direction: int, *, masked: Iterable[int]) -> int | None:
        """Return the next slice fixed by a prompt, in a direction (1 or -1), or None.

        A negative click fixes a slice only if the slice has a mask; otherwise masks of other slices may
        propagate to it.

        Args:
            masked: slices with a mask.
        """
        fixed = self.keys | self.outside.intersection(masked)
        candidates = [key for key in fixed if (key - index) * direction > 0]
        return min(candidates, key=lambda key: abs(key - index)) if candidates else None

    def likely_slices(self, mask: NDArray[np.bool_]) -> int:
        """Return the estimated number of slices of an object.

        Args:
            mask: (rows, columns) mask on the key slice.
        """
        first, last = self.slices
        if self._hull is None:
            across, *within = self._spacing
            width = 2 * np.sqrt(mask.sum() * within[0] * within[1] / np.pi)
            return min(last - first + 1, round(width / across))
        return last - first + 1

    def allowed(self, index: int) -> NDArray[np.bool_] | None:
        """Return (rows, columns) booleans where boxes allow a slice's mask; None if everywhere."""
        rectangles = [_with_slack(rectangle) for rectangle in self._flat.get(index, [])]
        if not rectangles and self._hull is None:
            return None
        allowed = _inside(rectangles, self._size) if rectangles else np.ones(self._size, dtype=bool)
        return allowed if self._hull is None else allowed & _inside([self._hull[:, 1:].flatten()], self._size)


def _with_slack(rectangle: NDArray[np.float64]) -> NDArray[np.float64]:
    slack = BOX_TOLERANCE * (rectangle[2:] - rectangle[:2])
    return rectangle + np.concatenate([-slack, slack])


def _inside(rectangles: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (rows, columns) booleans, True for pixels inside any of the rectangles."""
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    parts = [(rows >= a) & (rows <= c) & (columns >= b) & (columns <= d) for a, b, c, d in rectangles]
    return np.logical_or.reduce(parts)
