"""Part of a volume's mask: an array of booleans and its first voxel.

The mask of one organ fills a small part of a large volume, so masks are stored and combined within boxes.
Axes are always (i, j, k) of the file. Voxels outside a patch are not in the mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Voxel indices (i, j, k), or numbers of voxels along these axes.
Index = tuple[int, int, int]
#: First voxel of a box, and the voxel after its last one, along each axis.
Corners = tuple[Index, Index]


@dataclass(frozen=True, eq=False)
class Patch:
    """Immutable mask within a box of a volume.

    Two patches of the same mask may have different boxes; `tight` returns the smallest one. The patch holds a
    read-only view of the given array, not a copy.

    Attributes:
        start: (i, j, k) first voxel of the box.
        mask: (a, b, c) booleans of the box, in the volume's axis order.
    """

    start: Index
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.mask.flags.writeable:
            view = self.mask.view()
            view.setflags(write=False)
            object.__setattr__(self, "mask", view)

    @classmethod
    def empty(cls) -> Patch:
        """Return a patch without voxels."""
        return cls((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> Patch:
        """Return the patch of an (i, j, k) mask of a complete volume, in its bounding box."""
        return cls((0, 0, 0), mask).tight()

    @property
    def stop(self) -> Index:
        """The voxel after the last one of the box, along each axis."""
        i, j, k = (s + n for s, n in zip(self.start, self.mask.shape, strict=True))
        return i, j, k

    @property
    def corners(self) -> Corners:
        """Start and stop."""
        return self.start, self.stop

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the box in an array of the complete volume."""
        return box_slices(self.start, self.stop)

    @property
    def voxels(self) -> int:
        """Number of voxels in the mask."""
        return int(self.mask.sum())

    def to_array(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Return the mask of the complete volume.

        Args:
            shape: voxels of the volume along (i, j, k); the box must lie inside.

        Returns:
            (i, j, k) booleans, a new array.
        """
        mask = np.zeros(tuple(shape), dtype=bool)
        mask[self.slices] = self.mask
        return mask

    def value_at(self, voxel: Sequence[int]) -> bool:
        """Return whether a voxel (i, j, k) of the volume is in the mask; False outside the box."""
        at = tuple(v - s for v, s in zip(voxel, self.start, strict=True))
        return all(0 <= a < n for a, n in zip(at, self.mask.shape, strict=True)) and bool(self.mask[at])

    def tight(self) -> Patch:
        """Return the mask in its bounding box; the same patch if that is already its box."""
        bounds = mask_bounds(self.mask)
        if bounds is None:
            return Patch.empty()
        low, high = bounds
        if high == self.mask.shape and not any(low):
            return self
        i, j, k = (int(s + a) for s, a in zip(self.start, low, strict=True))
        return Patch((i, j, k), self.mask[box_slices(low, high)].copy())  # the copy frees the larger array

    def cropped(self, corners: Corners) -> Patch:
        """Return the part of the patch inside a box, as a view; of size zero if they do not overlap."""
        i, j, k = (max(s, a) for s, a in zip(self.start, corners[0], strict=True))
        stop = [max(a, min(s, b)) for a, s, b in zip((i, j, k), self.stop, corners[1], strict=True)]
        return Patch((i, j, k), self.mask[box_slices((i, j, k), stop, self.start)])

    def within(self, corners: Corners) -> NDArray[np.bool_]:
        """Return the mask on another box, in an array of that box's shape; a view for the patch's own box."""
        low, high = corners
        if (low, high) == self.corners:
            return self.mask
        out = np.zeros([b - a for a, b in zip(low, high, strict=True)], dtype=bool)
        part = self.cropped(corners)
        out[box_slices(part.start, part.stop, low)] = part.mask
        return out

    def _copy_within(self, corners: Corners) -> NDArray[np.bool_]:
        mask = self.within(corners)
        return mask if mask.flags.writeable else mask.copy()

    def overlaid(self, part: Patch) -> Patch:
        """Return the mask with the values of another patch, True and False, within that patch's box."""
        if not part.mask.size:
            return self
        corners = enclosing_box(self.corners, part.corners)
        mask = self._copy_within(corners)
        mask[box_slices(part.start, part.stop, corners[0])] = part.mask
        return Patch(corners[0], mask)

    def with_voxels(self, voxels: NDArray[np.intp], value: bool) -> Patch:
        """Return the mask with some voxels set and its box enlarged to hold them.

        It is the same patch if all voxels already have the value.

        Args:
            voxels: (N, 3) indices (i, j, k) in the volume, N > 0.
            value: whether the voxels become part of the mask.
        """
        if all(self.value_at(voxel) == value for voxel in voxels.tolist()):
            return self
        i, j, k = voxels.min(axis=0).tolist()
        a, b, c = (voxels.max(axis=0) + 1).tolist()
        low, high = enclosing_box(self.corners, ((i, j, k), (a, b, c)))
        mask = self._copy_within((low, high))
        mask[tuple((voxels - np.asarray(low)).T)] = value
        return Patch(low, mask)

    def without(self, *others: Patch) -> Patch:
        """Return the mask without the voxels of other patches, in the same box."""
        mask = self.mask.copy()
        for other in others:
            part = other.cropped(self.corners)
            mask[box_slices(part.start, part.stop, self.start)] &= ~part.mask
        return Patch(self.start, mask)

    def difference(self, other: Patch) -> Corners | None:
        """Return the bounding box of the voxels in exactly one of two masks; None if the masks are equal."""
        corners = enclosing_box(self.corners, other.corners)
        bounds = mask_bounds(self.within(corners) != other.within(corners))
        if bounds is None:
            return None
        first, stop = (tuple((np.asarray(corner) + corners[0]).tolist()) for corner in bounds)
        return first, stop


def box_slices(
    start: Iterable[int], stop: Iterable[int], origin: Iterable[int] = (0, 0, 0)
) -> tuple[slice, ...]:
    """Return the index of a box in a 3D array.

    Args:
        start, stop: corners of the box, `stop` excluded.
        origin: first voxel of the array.
    """
    return tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))


def enclosing_box(*boxes: Corners) -> Corners:
    """Return the smallest box that encloses all given boxes, ignoring boxes without voxels."""
    solid = [(start, stop) for start, stop in boxes if all(a < b for a, b in zip(start, stop, strict=True))]
    if not solid:
        return (0, 0, 0), (0, 0, 0)
    i, j, k = (min(values) for values in zip(*(start for start, _ in solid), strict=True))
    a, b, c = (max(values) for values in zip(*(stop for _, stop in solid), strict=True))
    return (i, j, k), (a, b, c)


def mask_bounds(mask: NDArray[np.bool_]) -> Corners | None:
    """Return the corners of the bounding box of a 3D mask, or None if it is empty."""
    if not mask.size:
        return None
    if all(end.any() for axis in range(3) for end in (np.moveaxis(mask, axis, 0)[n] for n in (0, -1))):
        return (0, 0, 0), mask.shape
    flat = np.logical_or.reduce(mask, axis=0)  # faster than reducing two axes at once
    second = np.flatnonzero(flat.any(axis=1))
    if not len(second):
        return None
    c, d = int(second[0]), int(second[-1]) + 1
    third = np.flatnonzero(np.logical_or.reduce(flat[c:d], axis=0))
    e, f = int(third[0]), int(third[-1]) + 1
    first = np.flatnonzero(mask[:, c:d, e:f].any(axis=(1, 2)))
    return (int(first[0]), c, e), (int(first[-1]) + 1, d, f)
