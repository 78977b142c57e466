"""Prompts for the next slice from the mask before, and the end of the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.predict.slicewise.encoded_prompts import Click


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """Settings of the propagation from slice to slice.

    Attributes:
        room: room around a mask in the box that the next slice is given, as a fraction of its size on each
            side.
        room_pixels: at least this many pixels.
        smallest: fewer pixels than this are no mask: the object has ended.
        growth: a mask this many times as large as the one before has run out of the object.
        shrinkage: and one smaller than this fraction of it has lost the object.
        overlap: least share of the smaller of two neighbouring masks that both have in common.
        quality: least predicted IoU.
        likeness: by how many standard deviations of the intensities inside the first mask the mean inside
            may have moved.
        least_deviation: that deviation is taken for no less than this share of the volume's intensities.
        agreement: Dice with the mask that was there before at which a correction goes no further.
    """

    room: float = 0.1
    room_pixels: float = 3.0
    smallest: int = 4
    growth: float = 2.0
    shrinkage: float = 0.1
    overlap: float = 0.5
    quality: float = 0.5
    likeness: float = 2.0
    least_deviation: float = 0.05
    agreement: float = 0.98


@dataclass(frozen=True, eq=False)
class DecodedSlice:
    """Encoded slice with its decoded mask.

    Attributes:
        logits: (rows, columns).
        low_res: the same as a mask prompt for the next slice.
        quality: predicted IoU.
    """

    logits: NDArray[np.float32]
    low_res: torch.Tensor
    quality: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask (rows, columns) of the slice."""
        return self.logits > 0


@dataclass(frozen=True)
class Appearance:
    """Intensities inside a mask.

    Attributes:
        mean, deviation: in shares of the volume's intensities.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, image: NDArray[np.float32], mask: NDArray[np.bool_]) -> Appearance:
        """Of a slice (rows, columns) in [0, 1] inside a mask that is not empty."""
        inside = image[mask]
        return cls(float(inside.mean()), float(inside.std()))


def why_ended(
    seen: DecodedSlice,
    before: NDArray[np.bool_],
    image: NDArray[np.float32],
    first: Appearance,
    settings: Propagation,
) -> str | None:
    """Why a slice's mask is not the object any more, in a word or two; None while it is.

    Args:
        seen: on this slice.
        before: (rows, columns) the mask on the slice before it.
        image: (rows, columns) this slice in [0, 1].
        first: of the mask that the propagation started from.
        settings: the rules.
    """
    mask = seen.mask
    size, size_before = int(mask.sum()), int(before.sum())
    if size < settings.smallest:
        return "empty"
    if size > settings.growth * size_before:
        return "grown"
    if size < settings.shrinkage * size_before:
        return "shrunk"
    if (mask & before).sum() < settings.overlap * min(size, size_before):
        return "elsewhere"
    if seen.quality < settings.quality:
        return "unsure"
    deviation = max(first.deviation, settings.least_deviation)
    if abs(float(image[mask].mean()) - first.mean) > settings.likeness * deviation:
        return "unlike"
    return None


def box_around(mask: NDArray[np.bool_], settings: Propagation) -> NDArray[np.float64]:
    """(4,) first row, first column, last row, last column of a mask that is not empty, with some room."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    low, high = np.array([rows[0], columns[0]], float), np.array([rows[-1], columns[-1]], float)
    room = np.maximum(settings.room * (high - low + 1), settings.room_pixels)
    limit = np.array(mask.shape) - 1.0
    return np.concatenate([np.maximum(low - room, 0), np.minimum(high + room, limit)])


def deepest(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(2,) row and column of the pixel of a mask that is farthest from its outline."""
    return np.array(np.unravel_index(int(_depth(mask).argmax()), mask.shape), dtype=float)


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(rows, columns) distance of each pixel of a mask to its outline, which the slice's border is too."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def left_by(clicks: Sequence[Click], mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return row and column (2,) deep inside a mask without its negative clicks; None if little is left.

    A negative click means at least the largest disc around it within the mask. If what remains is less
    than half as thick, the click means all of the mask.
    """
    depth, rest, thickest = _depth(mask), mask.copy(), 0.0
    rows, columns = np.indices(mask.shape)
    for (row, column), positive in clicks:
        if not positive:
            radius = float(depth[int(row + 0.5), int(column + 0.5)])
            rest &= (rows - row) ** 2 + (columns - column) ** 2 > radius**2
            thickest = max(thickest, radius)
    return deepest(rest) if rest.any() and float(_depth(rest).max()) >= thickest / 2 else None


def parts_that_touch(mask: NDArray[np.bool_], before: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of a mask that overlap the mask of the neighbouring slice."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[mask & before])) & mask
