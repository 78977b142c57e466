"""From slice to slice: what the next slice is told of the mask before, and when the object has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.compliance import EXCLUDED
from medsam_app.engine import Progress
from medsam_app.slice_prompts import Click, SlicePrompts
from medsam_app.slice_stack import SliceLogits


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """Settings of how a mask goes from slice to slice.

    Attributes:
        room: room around a mask in the box that the next slice is given, as a fraction of its size on each
            side.
        room_pixels: at least so many pixels.
        smallest: fewer pixels than this are no mask: the object has ended.
        growth: a mask so many times as large as the one before has run out of the object.
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
class Seen:
    """What the model makes of a slice.

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
    seen: Seen,
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
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), mask.shape), dtype=float)


def parts_that_touch(mask: NDArray[np.bool_], before: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of a mask that overlap the mask of the neighbouring slice."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[mask & before])) & mask


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


class Looker(Protocol):
    """A model that looks at the slices of one volume along one axis."""

    def look(
        self,
        index: int,
        *,
        box: NDArray[np.float64] | None,
        clicks: Sequence[Click],
        mask: torch.Tensor | None,
    ) -> Seen:
        """What the model makes of a slice and its prompts; `mask` is low-resolution logits."""

    def low_res(self, index: int, logits: NDArray[np.float32]) -> torch.Tensor:
        """(rows, columns) logits of a slice as a mask prompt."""

    def shown(self, index: int) -> NDArray[np.float32]:
        """(rows, columns) of a slice in [0, 1]."""


class Walk:
    """What the newest prompt changes: its key slice is looked at, then the slices beside it.

    Args:
        looker: looks at slices.
        asked: the prompts.
        logits: of the slices before the prompt; changed in place.
        settings: see `Propagation`.
        progress: called with a sentence and a fraction done.

    Attributes:
        quality: predicted IoU of the slices that were changed.
    """

    def __init__(
        self,
        looker: Looker,
        asked: SlicePrompts,
        logits: SliceLogits,
        settings: Propagation,
        *,
        progress: Progress | None = None,
    ) -> None:
        self.looker = looker
        self.asked = asked
        self.logits = logits
        self.settings = settings
        self.progress = progress
        self.quality: dict[int, float] = {}
        self._looked = 0
        self._about = len(logits.slices)

    def run(self, *, clear_beyond: bool) -> None:
        """Look at the key slice and follow its mask in both directions.

        Args:
            clear_beyond: where the mask ends before another key slice, what was beyond is dropped: a
                negative click says that the object is less, a positive one that it is more.
        """
        key, old = self.asked.key, self.logits[self.asked.key]
        had = bool((old > 0).any())
        mask = self.looker.low_res(key, old) if had and self.asked.rectangle is None else None
        first = self._look(key, self.asked.rectangle, self.asked.clicks(key), mask)
        self._keep(key, first.logits, first.quality)
        if had and dice(first.mask, old > 0) >= self.settings.agreement:
            return
        self._about = max(self._about, self.asked.likely_slices(first.mask))
        for direction in (1, -1):
            ended = self._follow(first, direction)
            if ended is not None and clear_beyond and self.asked.nearest_key(key, direction) is None:
                for index in self.logits.slices:
                    if (index - ended) * direction >= 0:
                        self.logits.drop(index)

    def _follow(self, first: Seen, direction: int) -> int | None:
        """Go on from the key slice; the slice on which the object has ended, None where it has not."""
        key, other = self.asked.key, self.asked.nearest_key(self.asked.key, direction)
        last = self.asked.slices[direction > 0]
        looks = Appearance.of(self.looker.shown(key), first.mask) if first.mask.any() else None
        before = first
        for index in range(key + direction, last + direction, direction):
            if index == other:
                return None
            if looks is None:
                return index
            seen = self._next(index, before)
            if why_ended(seen, before.mask, self.looker.shown(index), looks, self.settings):
                return index
            logits, old = seen.logits, self.logits[index]
            if (old > 0).any():
                if dice(seen.mask, old > 0) >= self.settings.agreement:
                    return None
                if other is not None:
                    share = np.float32((index - key) / (other - key))
                    logits = (1 - share) * logits + share * old
            self._keep(index, logits, seen.quality)
            before = seen
        return None

    def _next(self, index: int, before: Seen) -> Seen:
        """The slice beside one whose mask is known: of its mask, the parts that go on from there."""
        clicks = [*self.asked.clicks(index), (deepest(before.mask), True)]
        seen = self._look(index, box_around(before.mask, self.settings), clicks, before.low_res)
        astray = seen.mask & ~parts_that_touch(seen.mask, before.mask)
        return replace(seen, logits=np.where(astray, EXCLUDED, seen.logits))

    def _look(
        self,
        index: int,
        box: NDArray[np.float64] | None,
        clicks: Sequence[Click],
        mask: torch.Tensor | None,
    ) -> Seen:
        self._looked += 1
        if self.progress is not None:
            about = max(self._about, self._looked)
            share = min(0.99, self._looked / about)
            self.progress(f"Slice {self._looked} of about {about}", share)
        seen = self.looker.look(index, box=box, clicks=clicks, mask=mask)
        allowed = self.asked.allowed(index)
        return seen if allowed is None else replace(seen, logits=np.where(allowed, seen.logits, EXCLUDED))

    def _keep(self, index: int, logits: NDArray[np.float32], quality: float) -> None:
        self.logits[index] = logits
        self.quality[index] = quality
