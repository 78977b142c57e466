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
    deepest_without_negatives,
    touching_parts,
    why_ended,
)
from medsam_app.predict.slicewise.stack import SliceLogits
from medsam_app.progress import Progress


class SliceDecoder(Protocol):
    """A model that decodes the slices of one volume along one axis."""

    def decode(
        self,
        index: int,
        *,
        box: NDArray[np.float64] | None,
        clicks: Sequence[Click],
        mask: torch.Tensor | None,
    ) -> DecodedSlice:
        """Decode a slice with its prompts; `mask` holds low-resolution logits."""

    def low_res(self, index: int, logits: NDArray[np.float32]) -> torch.Tensor:
        """Return the (rows, columns) logits of a slice as a mask prompt."""

    def image(self, index: int) -> NDArray[np.float32]:
        """Return the (rows, columns) intensities of a slice in [0, 1]."""


class SliceWalk:
    """Propagation from the newest prompt's key slice to its neighbours.

    Args:
        decoder: decodes slices.
        prompts: the prompts on the slices.
        logits: logits of the slices before the newest prompt; changed in place.
        settings: see `Propagation`.
        progress: called with a sentence and the fraction done.

    Attributes:
        quality: predicted IoU of the changed slices.
    """

    def __init__(
        self,
        decoder: SliceDecoder,
        prompts: SlicePrompts,
        logits: SliceLogits,
        settings: Propagation,
        *,
        progress: Progress | None = None,
    ) -> None:
        self.decoder = decoder
        self.prompts = prompts
        self.logits = logits
        self.settings = settings
        self.progress = progress
        self.quality: dict[int, float] = {}
        self._decoded = 0
        self._estimate = len(logits.slices)

    def run(self, *, clear_beyond: bool) -> None:
        """Decode the key slice and propagate its mask in both directions.

        Args:
            clear_beyond: whether to remove the masks beyond the slice on which the object ends, if no other
                key slice follows. Meant for negative clicks, which make the object smaller.
        """
        key, old = self.prompts.key, self.logits[self.prompts.key]
        had_mask = bool((old > 0).any())
        clicks, mask = self.prompts.clicks(key), None
        if self.prompts.rectangle is None:
            has_positive = any(positive for _, positive in clicks)
            if not had_mask and not has_positive:
                return  # Only negative clicks, and the mask is already empty here: nothing to do.
            if had_mask:
                mask = self.decoder.low_res(key, old)
            # With negative clicks only, a model tends to segment what they mark.
            inside = None if has_positive else deepest_without_negatives(clicks, old > 0)
            clicks = clicks if inside is None else [*clicks, (inside, True)]
        first = self._decode(key, self.prompts.rectangle, clicks, mask)
        self._store(key, first.logits, first.quality)
        if had_mask and dice(first.mask, old > 0) >= self.settings.agreement:
            return
        self._estimate = max(self._estimate, self.prompts.likely_slices(first.mask))
        masked = self.logits.slices
        for direction in (1, -1):
            next_key = self.prompts.nearest_key(key, direction, masked=masked)
            ended = self._follow(first, direction, next_key)
            if ended is not None and clear_beyond and next_key is None:
                for index in self.logits.slices:
                    if (index - ended) * direction >= 0:
                        self.logits.drop(index)

    def _follow(self, first: DecodedSlice, direction: int, next_key: int | None) -> int | None:
        """Propagate from the key slice in a direction, at most up to another key slice.

        Returns:
            The slice on which the object ended; None if it did not end.
        """
        key = self.prompts.key
        last = self.prompts.slices[direction > 0]
        appearance = Appearance.of(self.decoder.image(key), first.mask) if first.mask.any() else None
        before = first
        for index in range(key + direction, last + direction, direction):
            if index == next_key:
                return None
            if appearance is None or self._excluded(index, before.mask):
                return index
            decoded = self._next(index, before)
            if why_ended(decoded, before.mask, self.decoder.image(index), appearance, self.settings):
                return index
            logits, old = decoded.logits, self.logits[index]
            if (old > 0).any():
                if dice(decoded.mask, old > 0) >= self.settings.agreement:
                    return None
                if next_key is not None:
                    share = np.float32((index - key) / (next_key - key))
                    logits = (1 - share) * logits + share * old
            self._store(index, logits, decoded.quality)
            before = decoded
        return None

    def _excluded(self, index: int, before: NDArray[np.bool_]) -> bool:
        """Return whether negative clicks on an empty slice fall inside the previous slice's mask."""
        return not self.logits.voxels(index) and any(
            not positive and before[int(at[0] + 0.5), int(at[1] + 0.5)]
            for at, positive in self.prompts.clicks(index)
        )

    def _next(self, index: int, before: DecodedSlice) -> DecodedSlice:
        """Decode the next slice and remove the parts of its mask that do not touch the previous mask."""
        clicks = [*self.prompts.clicks(index), (deepest(before.mask), True)]
        decoded = self._decode(index, box_around(before.mask, self.settings), clicks, before.low_res)
        detached = decoded.mask & ~touching_parts(decoded.mask, before.mask)
        return replace(decoded, logits=np.where(detached, EXCLUDED, decoded.logits))

    def _decode(
        self,
        index: int,
        box: NDArray[np.float64] | None,
        clicks: Sequence[Click],
        mask: torch.Tensor | None,
    ) -> DecodedSlice:
        self._decoded += 1
        if self.progress is not None:
            estimate = max(self._estimate, self._decoded)
            share = min(0.99, self._decoded / estimate)
            self.progress(f"Slice {self._decoded} of about {estimate}", share)
        decoded = self.decoder.decode(index, box=box, clicks=clicks, mask=mask)
        allowed = self.prompts.allowed(index)
        if allowed is None:
            return decoded
        return replace(decoded, logits=np.where(allowed, decoded.logits, EXCLUDED))

    def _store(self, index: int, logits: NDArray[np.float32], quality: float) -> None:
        self.logits[index] = logits
        self.quality[index] = quality
