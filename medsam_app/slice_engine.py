"""Prompts to masks with a model of pictures: slices are encoded as they are needed, masks carried along.

The slices are those of a flat box's own plane, otherwise those the scanner made: across the axis of the
coarsest spacing, or across head-feet where all are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medsam_app import compliance
from medsam_app.cache import EmbeddingCache, Sized
from medsam_app.engine import AnyPrompt, Progress, settled_state
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


class SliceModel(Protocol):
    """A model of pictures. Pixels are (row, column), grey values in [0, 1]."""

    model_id: str
    weights_sha256: str
    adapter_sha256: str

    def encode_slice(self, picture: torch.Tensor) -> Sized:
        """What the image encoder makes of a picture (rows, columns)."""
        ...

    def decode_slice(self, embedding: Sized, prompt: SlicePrompt) -> SliceMask:
        """The mask of a prompt at the picture's own size."""
        ...


class SliceEngine:
    """Steps of one volume with a model that sees slices of it; see `Engine`.

    Args:
        model: what encodes and decodes slices.
        volume: what is segmented.
        cache: of embeddings.
        settings: of the propagation.
    """

    def __init__(
        self, model: SliceModel, volume: Volume, cache: EmbeddingCache, settings: Propagation | None = None
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
            lambda: self.model.encode_slice(self._picture(axis, number, window)),
        )
        self.encoded += made
        if stretch is None:
            return self.model.decode_slice(embedding, prompt)
        found = self.model.decode_slice(embedding, stretched(prompt, stretch))
        logits = torch.from_numpy(found.logits)[None, None]
        shape = self.slice_of(axis, number).shape
        back = F.interpolate(logits, shape, mode="bilinear", align_corners=False)[0, 0]
        return replace(found, logits=back.numpy())

    def _stretch(self, axis: int) -> NDArray[np.float64] | None:
        """(2,) by how much rows and columns are stretched to square pixels, or None where they are square."""
        spacing = np.delete(np.asarray(self.volume.grid.spacing), axis)
        ratio = spacing / spacing.min()
        return ratio if ratio.max() >= OBLONG else None

    def _picture(self, axis: int, number: int, window: tuple[float, float]) -> torch.Tensor:
        low, high = window
        pixels = torch.from_numpy(np.ascontiguousarray(self.slice_of(axis, number), dtype=np.float32))
        pixels = ((pixels - low) / max(high - low, 1e-6)).clamp(0, 1)
        stretch = self._stretch(axis)
        if stretch is None:
            return pixels
        size = [round(n * s) for n, s in zip(pixels.shape, stretch, strict=True)]
        return F.interpolate(pixels[None, None], size, mode="bilinear", align_corners=False)[0, 0]

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


def stretched(prompt: SlicePrompt, stretch: NDArray[np.float64]) -> SlicePrompt:
    """A prompt in the pixels of a picture whose rows and columns are stretched."""
    box, alike = prompt.box, prompt.alike
    if box is not None:
        box = (box.reshape(2, 2) + 0.5) * stretch - 0.5
    if alike is not None:
        size = [round(n * s) for n, s in zip(alike.shape, stretch, strict=True)]
        alike = F.interpolate(torch.from_numpy(alike)[None, None].float(), size)[0, 0].numpy() > 0
    return replace(
        prompt,
        points=(prompt.points + 0.5) * stretch - 0.5,
        box=None if box is None else box.ravel(),
        alike=alike,
    )
