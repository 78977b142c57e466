"""Prompts to masks with a model of pictures: slices are encoded as they are needed, masks carried along.

The slices are those of a flat box's own plane, otherwise those the scanner made: across the axis of the
coarsest spacing, or across head-feet where all are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medsam_app import compliance
from medsam_app.cache import EmbeddingCache
from medsam_app.engine import AnyPrompt, Progress, settled_state
from medsam_app.models.slices import SliceCandidates, SliceSegmenter
from medsam_app.prediction import State
from medsam_app.prompts import MaskPrompt, Point
from medsam_app.propagation import Propagation, SliceMask, SlicePrompt
from medsam_app.roi import Index, mask_from_logits, on_own_grid
from medsam_app.slice_work import SliceWork
from medsam_app.volume import Volume

#: Window of the intensities of CT (level 40, width 400) where the first prompt lies in it.
CT_WINDOW = (-160.0, 240.0)
#: Pixels this much longer than wide, or more, are made square before the model sees them.
OBLONG = 1.2


class SliceEngine:
    """Steps of one volume with a model that sees slices of it; see `Engine`.

    Args:
        model: what encodes and decodes slices.
        volume: what is segmented.
        cache: of embeddings.
        settings: of the propagation.
    """

    def __init__(
        self,
        model: SliceSegmenter,
        volume: Volume,
        cache: EmbeddingCache,
        settings: Propagation | None = None,
    ) -> None:
        self.model = model
        self.volume = volume
        self.cache = cache
        self.settings = settings or Propagation()
        self.encoded = 0

    def step(
        self, before: State | None, prompts: tuple[AnyPrompt, ...], progress: Progress | None = None
    ) -> State:
        """The state after the last prompt, from the state before it."""
        newest = prompts[-1]
        if isinstance(newest, MaskPrompt):
            return self._from_mask(before, prompts, newest)
        window = self.window_of(prompts)
        work = SliceWork(self, self.volume.grid, window, prompts, before, progress)
        work.ask(newest)
        return self._state(before, prompts, work)

    def refined(
        self, state: State, prompts: tuple[AnyPrompt, ...], progress: Progress | None
    ) -> tuple[Index, NDArray[np.bool_], tuple[int, ...]]:
        """The mask as it is: slices have the volume's own spacing already."""
        return state.start, state.patch, state.unmet

    def look(self, axis: int, number: int, window: tuple[float, float], prompt: SlicePrompt) -> SliceMask:
        """The model's mask of one slice across an axis of the file."""
        stretch = self._stretch(axis)
        weights = self.model.weights_sha256 or id(self.model)
        key = (self.model.model_id, weights, self.model.adapter_sha256, self.volume.fingerprint)
        embedding, made = self.cache.get_or_make(
            (*key, axis, number, window),
            lambda: self.model.encode_slice(self._picture(axis, number, stretch), window=window),
        )
        self.encoded += made
        asked = prompt if stretch is None else stretched(prompt, stretch)
        tell_points = len(asked.points) and not (self.model.boxes_only and asked.box is not None)
        found = self.model.decode_slice(
            embedding,
            points=asked.points if tell_points else None,
            labels=asked.labels if tell_points else None,
            box=asked.box,
            mask=self._memory(embedding, asked.earlier),
        )
        return chosen(found, prompt.earlier, self.slice_of(axis, number).shape)

    def _memory(self, embedding: Any, earlier: NDArray[np.float32] | None) -> torch.Tensor | None:
        return None if earlier is None else self.model.low_res(embedding, torch.from_numpy(earlier))

    def _stretch(self, axis: int) -> NDArray[np.float64] | None:
        """(2,) by how much rows and columns are stretched to square pixels, or None where they are square."""
        spacing = np.delete(np.asarray(self.volume.grid.spacing), axis)
        ratio = spacing / spacing.min()
        return ratio if ratio.max() >= OBLONG else None

    def _picture(self, axis: int, number: int, stretch: NDArray[np.float64] | None) -> NDArray:
        """(rows, columns) raw intensities with square pixels."""
        pixels = self.slice_of(axis, number)
        return pixels if stretch is None else _resized(pixels, stretch)

    def slice_of(self, axis: int, number: int) -> NDArray:
        """(rows, columns) raw intensities; the file's other two axes in their order."""
        return self.volume.array.take(number, axis=axis)

    def window_of(self, prompts: Sequence[AnyPrompt]) -> tuple[float, float]:
        """Lowest and highest intensity that the model is shown, the same for all slices of an object."""
        array = self.volume.array
        step = max(1, round((array.size / 500_000) ** (1 / 3)))
        sample = array[::step, ::step, ::step]
        low, high = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
        if self.volume.modality == "CT" or float(sample.min()) < -900:
            first = next(p for p in prompts if not isinstance(p, MaskPrompt))
            at = first.coordinates if isinstance(first, Point) else np.add(first.lower, first.upper) / 2
            clicked = array[compliance.nearest_voxel(Point(coordinates=tuple(at)), array.shape)]
            if CT_WINDOW[0] <= clicked <= CT_WINDOW[1]:
                return CT_WINDOW
        return (low, high) if high > low else (low, low + 1)

    def _from_mask(self, before: State | None, prompts: tuple[AnyPrompt, ...], mask: MaskPrompt) -> State:
        """The state of a mask given as it is."""
        patch = mask.to_array()[tuple(slice(a, b) for a, b in zip(mask.start, mask.stop, strict=True))]
        logits = np.where(patch, 4.0, compliance.EXCLUDED).astype(np.float32)
        roi, values = on_own_grid(logits, mask.start, self.volume.grid)
        return settled_state(
            before, prompts, self.volume.grid, roi, values, mask.start, patch, 1.0, detailed=True
        )

    def _state(self, before: State | None, prompts: tuple[AnyPrompt, ...], work: SliceWork) -> State:
        grid = self.volume.grid
        start, logits = work.gathered()
        roi, values = on_own_grid(logits, start, grid)
        stop = tuple(a + n for a, n in zip(start, logits.shape, strict=True))
        crop = self.volume.array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        low, high = work.window
        grey = np.clip((crop.astype(np.float32) - low) / (high - low), 0, 1) * 2 - 1
        look = torch.from_numpy(np.ascontiguousarray(grid.ras.from_file(grey)))
        values = compliance.keep_to_boxes(values, roi, prompts)
        points = [p for p in prompts if isinstance(p, Point)]
        values = compliance.honour_points(values, look, roi, points, grid.shape)
        new_start, patch = mask_from_logits(values, roi)
        return settled_state(
            before, prompts, grid, roi, values, new_start, patch, work.quality(), detailed=False
        )


def chosen(found: SliceCandidates, earlier: NDArray[np.float32] | None, shape: tuple[int, ...]) -> SliceMask:
    """Of several candidates the one thought best, or most like a mask that is known.

    Args:
        found: candidates, on square pixels.
        earlier: (rows, columns) logits of what the mask should resemble, or None.
        shape: rows and columns of the slice.
    """
    logits = found.logits.float().cpu()
    if logits.shape[1:] != shape:
        logits = F.interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    overlap = found.quality.float().cpu().clamp(0, 1)
    quality = 2 * overlap / (1 + overlap)  # a Dice, as everywhere else
    worth = quality
    if earlier is not None:
        inside, known = logits > 0, torch.from_numpy(earlier > 0)
        shared = (inside & known).sum((1, 2))
        worth = quality + 2 * shared / (inside.sum((1, 2)) + known.sum()).clamp_min(1)
    best = int(worth.argmax())
    return SliceMask(logits[best].numpy(), float(quality[best]))


def stretched(prompt: SlicePrompt, stretch: NDArray[np.float64]) -> SlicePrompt:
    """A prompt in the pixels of a picture whose rows and columns are stretched."""
    box = None if prompt.box is None else ((prompt.box.reshape(2, 2) + 0.5) * stretch - 0.5).ravel()
    earlier = prompt.earlier
    if earlier is not None:
        earlier = _resized(earlier, stretch)
    return replace(prompt, points=(prompt.points + 0.5) * stretch - 0.5, box=box, earlier=earlier)


def _resized(pixels: NDArray, stretch: NDArray[np.float64]) -> NDArray[np.float32]:
    """(rows, columns) values with rows and columns stretched."""
    size = [round(n * s) for n, s in zip(pixels.shape, stretch, strict=True)]
    values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    return F.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
