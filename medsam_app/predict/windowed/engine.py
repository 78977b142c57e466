"""Engine of 3D models: one window, chosen from the prompts and their mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.adapters.adapter import adapter_in_use, learned_prompt
from medsam_app.grid.patch import Index, Patch
from medsam_app.grid.roi import Roi, mask_from_logits, move_values, read_roi
from medsam_app.io.volume import Volume
from medsam_app.models.identity import cache_key
from medsam_app.models.sam3d import Embedding, Sam3D
from medsam_app.predict.core import constraints
from medsam_app.predict.core.click_edit import keep_to_click, mend_near_click
from medsam_app.predict.core.engine import Prompts, settled_state
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.core.prediction import PromptState
from medsam_app.predict.windowed.encoded_prompts import prompts_in_roi
from medsam_app.predict.windowed.tiles import plan_tiles
from medsam_app.predict.windowed.window_choice import (
    Framing,
    better_roi,
    first_roi,
    holds_points,
    roi_with_points,
    wider_roi,
)
from medsam_app.progress import Progress
from medsam_app.prompts.types import Box, MaskPrompt, ModelPrompt, Point, as_clicks

#: Side in voxels of the windows whose outlines gain from tiles.
TILED_SIDE = 64
#: Variants of a decode: how often clicks are moved, and by how many voxels of the window at most.
MOVES, MOVED = 2, 1.5
#: This many prompts may change the whole mask: they say what the object is. Clicks after them correct it.
FREE_PROMPTS = 3


class WindowEngine:
    """A 3D model on one volume; see `Engine`.

    Args:
        model: encodes and decodes windows.
        volume: what is segmented.
        cache: where embeddings of windows are remembered.
        framing: how the window is chosen.
    """

    def __init__(self, model: Sam3D, volume: Volume, cache: EmbeddingCache, framing: Framing) -> None:
        self.model = model
        self.volume = volume
        self.cache = cache
        # A model that is costly, or knows one spacing alone, is asked less.
        self._framing = replace(
            framing, encodings=min(framing.encodings, model.encodings), fixed_mm=model.spacing_mm
        )
        self.encoded = 0

    @property
    def framing(self) -> Framing:
        """Settings of the window, of the one spacing that the adapter in use was trained with."""
        adapter = adapter_in_use(self.model)
        if adapter is None or adapter.card.spacing is None:
            return self._framing
        return replace(self._framing, fixed_mm=max(adapter.card.spacing), encodings=1)

    @property
    def shape(self) -> Index:
        """Voxels of a window, as the adapter in use was trained with, or as the model has them."""
        adapter = adapter_in_use(self.model)
        return (adapter and adapter.card.window) or self.model.roi_shape

    def step(
        self,
        before: PromptState | None,
        prompts: Prompts,
        progress: Progress | None,
        label: int | None = None,
    ) -> PromptState:
        """The state after the last prompt, from the state before it."""
        grid, newest, framing = self.volume.grid, prompts[-1], self.framing
        if isinstance(newest, MaskPrompt):
            return self._from_mask(before, prompts, newest)
        clicks = [p for p in as_clicks([newest]) if isinstance(p, Point)]
        told = as_clicks(prompts)
        if before is None or isinstance(newest, Box):
            roi = first_roi(told, grid, self.shape, framing)
        elif before.roi.shape == self.shape and holds_points(before.roi, told, framing):
            roi = before.roi
        else:
            roi = roi_with_points(before.roi, (before.logits > 0).numpy(), told, grid, framing)
        # A box or a given mask has already set the window.
        settled = _detailed(before) or any(isinstance(p, Box) and p.slice_axis is None for p in prompts)
        roi, logits, score = self._best_window(roi, told, clicks, before, label, settled=settled)
        mends = bool(clicks) and len(prompts) > FREE_PROMPTS
        if before is not None and clicks:
            old = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
            if before.detailed:
                logits = mend_near_click(old, logits, roi, *clicks)
            elif mends:
                logits = self._honoured(keep_to_click(old, logits, roi, *clicks), roi, told)
        seen = patch = mask_from_logits(logits, roi)
        if before is not None and (before.detailed or mends):
            patch = _keep_detail(before, roi, seen)
        state = settled_state(before, prompts, grid, roi, logits, patch, score, detailed=_detailed(before))
        return replace(state, seen=seen)

    def refined(
        self, state: PromptState, prompts: Prompts, progress: Progress | None, label: int | None = None
    ) -> tuple[Patch, tuple[int, ...]]:
        """The mask of a state with its outline drawn in tiles, where that shows more.

        A window of 128 voxels is as fine already as tiles of one of 64.
        """
        grid, finest = self.volume.grid, self.framing.finest * float(self.volume.grid.spacing.min())
        mosaic = None
        if not state.detailed and not self.framing.fixed_mm and max(self.shape) < 2 * TILED_SIDE:
            mosaic = plan_tiles(state.logits, state.roi, grid, finest=finest, fill=constraints.EXCLUDED)
        if mosaic is None:
            return state.patch, state.unmet
        rough = replace(state, roi=mosaic.roi, logits=mosaic.logits, detailed=True)

        def look(roi: Roi, sure: NDArray[np.int8], number: int) -> torch.Tensor:
            if progress is not None:
                progress(f"Outline, tile {number + 1} of {len(mosaic.tiles)}", number / len(mosaic.tiles))
            return self._decode(roi, told, rough, label, sure)[0]

        told = as_clicks(prompts)
        logits = constraints.keep_to_boxes(mosaic.redrawn(look), mosaic.roi, told)
        return constraints.settle(mask_from_logits(logits, mosaic.roi), prompts, grid.shape)

    def variants(
        self, before: PromptState | None, state: PromptState, prompts: Prompts, label: int | None = None
    ) -> torch.Tensor:
        """(V, X, Y, Z) logits of variants of a state on its window: they differ where the model is in doubt.

        All candidates of the decode with clicks as they are, with clicks moved a little, and, where there was
        a mask before, without it. See `doubt`.
        """
        reach = np.abs(np.diff(state.roi.to_file([[0, 0, 0], [1, 1, 1]]), axis=0))[0]
        last, told = np.asarray(self.volume.grid.shape) - 1, as_clicks(prompts)
        tried: list[tuple[PromptState | None, Sequence[ModelPrompt]]] = [(before, told)]
        for number in range(MOVES):
            draw = np.random.default_rng(number)
            tried.append(
                (before, tuple(_moved(p, MOVED * reach * draw.uniform(-1, 1, 3), last) for p in told))
            )
        if before is not None:
            tried.append((None, told))
        embedding = self._embed(state.roi)
        learned = None if label is None else learned_prompt(self.model, label)
        found = []
        for memory, asked in tried:
            prompted = prompts_in_roi(state.roi, asked, memory, None, self.model.device, learned)
            found.append(self.model.decode(embedding, prompted).logits[0].float().cpu())
        return torch.cat(found)

    def _best_window(
        self,
        roi: Roi,
        prompts: Sequence[ModelPrompt],
        clicks: Sequence[Point],
        before: PromptState | None,
        label: int | None,
        *,
        settled: bool,
    ) -> tuple[Roi, torch.Tensor, float]:
        """The window that suits the mask best, with logits and predicted quality there."""
        grid, framing = self.volume.grid, self.framing
        logits, score = self._decode(roi, prompts, before, label)
        if settled:
            return roi, logits, score
        # A click that says the object extends elsewhere: it may be much larger than it seemed.
        missed = any(click.positive and not _holds(before, click, grid.shape) for click in clicks)
        more = framing.encodings - 1
        if missed and more and (wide := wider_roi(roi, grid, framing)) is not None:
            more -= 1
            seen, thought = self._decode(wide, prompts, before, label)
            if thought > score + (framing.trust if before is None else framing.trust_again):
                roi, logits, score = wide, seen, thought
        for _ in range(more):
            wanted = better_roi(roi, (logits > 0).numpy(), prompts, grid, framing)
            if wanted is None:
                break
            roi = wanted
            logits, score = self._decode(roi, prompts, before, label)
        return roi, logits, score

    def _decode(
        self,
        roi: Roi,
        prompts: Sequence[ModelPrompt],
        before: PromptState | None,
        label: int | None = None,
        sure: NDArray[np.int8] | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Logits (X, Y, Z) on a window, prompts honoured, and the predicted quality."""
        embedding = self._embed(roi)
        learned = None if label is None else learned_prompt(self.model, label)
        asked = prompts_in_roi(roi, prompts, before, sure, self.model.device, learned)
        logits, quality = self.model.decode(embedding, asked).best()
        values = torch.nan_to_num(logits[0, 0].float().cpu(), nan=constraints.EXCLUDED)
        values = constraints.keep_to_boxes(values, roi, prompts)
        return self._honoured(values, roi, prompts), float(torch.nan_to_num(quality[0]).clamp(0, 1))

    def _honoured(self, logits: torch.Tensor, roi: Roi, prompts: Sequence[ModelPrompt]) -> torch.Tensor:
        """Logits on a window that was encoded, with every click on its side."""
        points = [p for p in prompts if isinstance(p, Point)]
        look = self._embed(roi).image[0, -1].float().cpu()
        return constraints.honour_points(logits, look, roi, points, self.volume.grid.shape)

    def _embed(self, roi: Roi) -> Embedding:
        """Return the embedding of a window, from the cache if possible."""
        key = (*cache_key(self.model), self.volume.fingerprint, roi)
        embedding, made = self.cache.get_or_make(key, lambda: self._encode(roi))
        self.encoded += made
        return embedding

    def _encode(self, roi: Roi) -> Embedding:
        image, valid = (t[None, None].to(self.model.device) for t in read_roi(self.volume.array, roi))
        return self.model.encode_image(image, valid)

    def _from_mask(self, before: PromptState | None, prompts: Prompts, mask: MaskPrompt) -> PromptState:
        """The state of a mask given as it is."""
        roi = first_roi(as_clicks(prompts), self.volume.grid, self.shape, self.framing)
        patch = mask.patch()
        inside, valid = read_roi(patch.to_array(mask.shape), roi)
        logits = torch.where(valid, torch.logit(inside, eps=0.02), constraints.EXCLUDED)
        return settled_state(before, prompts, self.volume.grid, roi, logits, patch, 1.0, detailed=True)


def _moved(prompt: ModelPrompt, by: NDArray[np.float64], last: NDArray[np.int_]) -> ModelPrompt:
    """A click a little aside, within the volume; other prompts as they are."""
    if not isinstance(prompt, Point):
        return prompt
    i, j, k = np.clip(np.add(prompt.coordinates, by), 0, last).tolist()
    return Point(coordinates=(i, j, k), positive=prompt.positive)


def _holds(before: PromptState | None, click: Point, shape: Sequence[int]) -> bool:
    """Return whether a click lies inside the mask before it."""
    if before is None:
        return False
    return before.patch.value_at(constraints.nearest_voxel(click, shape))


def _detailed(before: PromptState | None) -> bool:
    return before is not None and before.detailed


def _keep_detail(before: PromptState, roi: Roi, seen: Patch) -> Patch:
    """Return the new mask, with the finer earlier one where the prompt changed nothing.

    Args:
        before: the state before the prompt.
        roi: the window.
        seen: the mask that the window's logits make after the prompt.
    """
    coarse = before.seen
    if coarse is None or before.roi != roi:
        moved = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
        coarse = mask_from_logits(moved, roi)
    if coarse is before.patch:  # prompts changed nothing of what the logits gave
        return seen
    detail = coarse.difference(before.patch)
    if detail is None:
        return seen
    new, old, fine = (patch.within(detail) for patch in (seen, coarse, before.patch))
    return seen.overlaid(Patch(detail[0], np.where(new == old, fine, new))).tight()
