"""Propagation over slices, from the newest prompt's slice until the object ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.masks import dice
from medsam_app.predict.core.constraints import EXCLUDED
from medsam_app.predict.slicewise.encoded_prompts import Click, SlicePrompts
from medsam_app.predict.slicewise.propagation import (
    Appearance,
    DecodedSlice,
    Propagation,
    box_around,
    deepest,
    left_by,
    parts_that_touch,
    why_ended,
)
from medsam_app.predict.slicewise.stack import SliceLogits
from medsam_app.progress import Progress


class SliceDecoder(Protocol):
    """A model that looks at the slices of one volume along one axis."""

    def look(
        self,
        index: int,
        *,
        box: NDArray[np.float64] | None,
        clicks: Sequence[Click],
        mask: torch.Tensor | None,
    ) -> DecodedSlice:
        """Decode a slice with its prompts; `mask` holds low-resolution logits."""

    def low_res(self, index: int, logits: NDArray[np.float32]) -> torch.Tensor:
        """(rows, columns) logits of a slice as a mask prompt."""

    def shown(self, index: int) -> NDArray[np.float32]:
        """(rows, columns) of a slice in [0, 1]."""


class SliceWalk:
    """Propagation from the newest prompt's key slice to its neighbours.

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
        looker: SliceDecoder,
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
        clicks, mask = self.asked.clicks(key), None
        if self.asked.rectangle is None:
            told_inside = any(positive for _, positive in clicks)
            if not had and not told_inside:
                return  # Only negative clicks, and the mask is already empty here: nothing to do.
            if had:
                mask = self.looker.low_res(key, old)
            # With negative clicks only, a model tends to segment what they mark.
            inside = None if told_inside else left_by(clicks, old > 0)
            clicks = clicks if inside is None else [*clicks, (inside, True)]
        first = self._look(key, self.asked.rectangle, clicks, mask)
        self._keep(key, first.logits, first.quality)
        if had and dice(first.mask, old > 0) >= self.settings.agreement:
            return
        self._about = max(self._about, self.asked.likely_slices(first.mask))
        masked = self.logits.slices
        for direction in (1, -1):
            other = self.asked.nearest_key(key, direction, masked=masked)
            ended = self._follow(first, direction, other)
            if ended is not None and clear_beyond and other is None:
                for index in self.logits.slices:
                    if (index - ended) * direction >= 0:
                        self.logits.drop(index)

    def _follow(self, first: DecodedSlice, direction: int, other: int | None) -> int | None:
        """Propagate from the key slice up to another slice.

        Return the slice on which the object ended; None if it did not end.
        """
        key = self.asked.key
        last = self.asked.slices[direction > 0]
        looks = Appearance.of(self.looker.shown(key), first.mask) if first.mask.any() else None
        before = first
        for index in range(key + direction, last + direction, direction):
            if index == other:
                return None
            if looks is None or self._denied(index, before.mask):
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

    def _denied(self, index: int, before: NDArray[np.bool_]) -> bool:
        """Return whether negative clicks on an empty slice exclude the neighbouring mask."""
        return not self.logits.voxels(index) and any(
            not positive and before[int(at[0] + 0.5), int(at[1] + 0.5)]
            for at, positive in self.asked.clicks(index)
        )

    def _next(self, index: int, before: DecodedSlice) -> DecodedSlice:
        """Decode the neighbour of a slice; keep the parts of its mask connected to the known mask."""
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
    ) -> DecodedSlice:
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
