"""Prompts for the next slice from the previous mask, and where the object ends."""

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
        room: margin on each side of the box prompt for the next slice, as a fraction of the mask's size.
        room_pixels: least margin in pixels.
        smallest: the object has ended when the mask has fewer pixels than this.
        growth: the mask has leaked when it is more than this many times as large as the previous one.
        shrinkage: the object is lost when the mask is smaller than this fraction of the previous one.
        overlap: least overlap of two neighbouring masks, as a fraction of the smaller one.
        quality: least predicted IoU.
        likeness: most by which the mean intensity inside a mask may differ from the first mask's, in standard
            deviations inside the first mask.
        least_deviation: lower limit of that deviation, as a fraction of the volume's intensity range.
        agreement: Dice with the earlier mask of a slice at which the propagation of a correction stops.
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
    """Decoded mask of a slice.

    Attributes:
        logits: (rows, columns).
        low_res: the logits as a mask prompt for the next slice.
        quality: predicted IoU.
    """

    logits: NDArray[np.float32]
    low_res: torch.Tensor
    quality: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The (rows, columns) mask of the slice."""
        return self.logits > 0


@dataclass(frozen=True)
class Appearance:
    """Intensities inside a mask.

    Attributes:
        mean, deviation: mean and standard deviation, as fractions of the volume's intensity range.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, image: NDArray[np.float32], mask: NDArray[np.bool_]) -> Appearance:
        """Return the appearance of a slice (rows, columns) in [0, 1] inside a non-empty mask."""
        inside = image[mask]
        return cls(float(inside.mean()), float(inside.std()))


def why_ended(
    seen: DecodedSlice,
    before: NDArray[np.bool_],
    image: NDArray[np.float32],
    first: Appearance,
    settings: Propagation,
) -> str | None:
    """Return the reason, in one word, why a slice's mask is no longer the object; None if it still is.

    Args:
        seen: decoded mask of this slice.
        before: (rows, columns) mask of the previous slice.
        image: (rows, columns) intensities of this slice in [0, 1].
        first: appearance of the mask from which the propagation started.
        settings: limits of the rules.
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
    """Return (4,) first row, first column, last row, last column of a non-empty mask, with a margin."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    low, high = np.array([rows[0], columns[0]], float), np.array([rows[-1], columns[-1]], float)
    room = np.maximum(settings.room * (high - low + 1), settings.room_pixels)
    limit = np.array(mask.shape) - 1.0
    return np.concatenate([np.maximum(low - room, 0), np.minimum(high + room, limit)])


def deepest(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the row and column (2,) of the mask's pixel farthest from its outline."""
    return np.array(np.unravel_index(int(_depth(mask).argmax()), mask.shape), dtype=float)


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the (rows, columns) distance of each pixel to the mask's outline or the slice's border."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def deepest_without_negatives(clicks: Sequence[Click], mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Return the deepest row and column (2,) of a mask away from negative clicks; None if little remains.

    A negative click removes the largest disc around it within the mask. If the rest is less than half as
    thick as the disc, the click rejects the complete mask.
    """
    depth, rest, thickest = _depth(mask), mask.copy(), 0.0
    rows, columns = np.indices(mask.shape)
    for (row, column), positive in clicks:
        if not positive:
            radius = float(depth[int(row + 0.5), int(column + 0.5)])
            rest &= (rows - row) ** 2 + (columns - column) ** 2 > radius**2
            thickest = max(thickest, radius)
    return deepest(rest) if rest.any() and float(_depth(rest).max()) >= thickest / 2 else None


def touching_parts(mask: NDArray[np.bool_], before: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the connected parts of a mask that overlap the mask of the previous slice."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[mask & before])) & mask
