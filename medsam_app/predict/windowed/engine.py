"""Engine of 3D models: one window, chosen from the prompts and their mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.adapters.adapter import adapter_in_use, learned_prompt
from medsam_app.grid.patch import Index, Patch
from medsam_app.grid.roi import Roi, mask_from_logits, move_values, read_roi
from medsam_app.io.volume import Volume
from medsam_app.models.identity import cache_key
from medsam_app.models.sam3d import Embedding, RoiPrompts, Sam3D
from medsam_app.predict.core import constraints
from medsam_app.predict.core.click_edit import correct_near_click, keep_to_click
from medsam_app.predict.core.engine import Prompts, settled_state
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.core.prediction import PromptState
from medsam_app.predict.windowed.box_decodes import (
    EDGE,
    first_decodes,
    later_decodes,
    mean_logits,
)
from medsam_app.predict.windowed.box_slices import BoxSlices
from medsam_app.predict.windowed.encoded_prompts import prompts_in_roi
from medsam_app.predict.windowed.tiles import plan_tiles
from medsam_app.predict.windowed.window_choice import (
    Framing,
    better_roi,
    first_roi,
    holds_points,
    narrower_roi,
    roi_with_points,
    wider_roi,
)
from medsam_app.progress import Progress
from medsam_app.prompts.types import Box, MaskPrompt, ModelPrompt, Point, UserPrompt, as_clicks

#: Side in voxels of windows whose outlines benefit from tiles.
TILED_SIDE = 64
#: Variants of a decode: number of times that clicks are moved, and the largest shift in voxels of the window.
MOVES, MOVED = 2, 1.5
#: The first prompts, up to this many and not counting boxes, may change the mask anywhere; later clicks only
#: correct it locally.
FREE_PROMPTS = 3


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the model decodes on a window.

    Attributes:
        logits: (X, Y, Z), in agreement with all prompts.
        score: predicted quality in [0, 1].
    """

    logits: torch.Tensor
    score: float


class WindowEngine:
    """A 3D model on one volume; see `Engine`.

    Args:
        model: encodes and decodes windows.
        volume: the volume to segment.
        cache: cache of the windows' embeddings.
        framing: settings of the window choice.
    """

    def __init__(self, model: Sam3D, volume: Volume, cache: EmbeddingCache, framing: Framing) -> None:
        self.model = model
        self.volume = volume
        self.cache = cache
        # A slow model, or one trained at a single spacing, encodes fewer windows.
        self._framing = replace(
            framing, encodings=min(framing.encodings, model.encodings), fixed_mm=model.spacing_mm
        )
        self.encoded = 0
        self._box_slices = None if model.box_model is None else BoxSlices(model.box_model, volume, cache)

    @property
    def framing(self) -> Framing:
        """Settings of the window, fixed to the training spacing of the adapter in use, if any."""
        adapter = adapter_in_use(self.model)
        if adapter is None or adapter.card.spacing is None:
            return self._framing
        return replace(self._framing, fixed_mm=max(adapter.card.spacing), encodings=1)

    @property
    def shape(self) -> Index:
        """Voxels of a window: those of the adapter in use, or else the model's."""
        adapter = adapter_in_use(self.model)
        return (adapter and adapter.card.window) or self.model.roi_shape

    def step(
        self,
        before: PromptState | None,
        prompts: Prompts,
        progress: Progress | None,
        label: int | None = None,
    ) -> PromptState:
        """Return the state after the last prompt; see `Engine`."""
        grid, newest, framing = self.volume.grid, prompts[-1], self.framing
        if isinstance(newest, MaskPrompt):
            return self._from_mask(before, prompts, newest)
        clicks = [p for p in as_clicks([newest]) if isinstance(p, Point)]
        model_prompts = as_clicks(prompts)
        if before is None or isinstance(newest, Box):
            roi = first_roi(model_prompts, grid, self.shape, framing)
        elif before.roi.shape == self.shape and holds_points(before.roi, model_prompts, framing):
            roi = before.roi
        else:
            roi = roi_with_points(before.roi, (before.logits > 0).numpy(), model_prompts, grid, framing)
        # A box or a mask prompt has already determined the window.
        settled = _detailed(before) or any(isinstance(p, Box) and p.slice_axis is None for p in prompts)
        roi, decoded = self._best_window(roi, model_prompts, clicks, before, label, settled=settled)
        logits = decoded.logits
        number = sum(not isinstance(p, Box) for p in prompts)
        local = bool(clicks) and number > FREE_PROMPTS
        if before is not None and clicks:
            old = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
            if before.detailed:
                logits = correct_near_click(old, logits, roi, *clicks)
            elif (
                self._redraws(prompts)
                and self._box_slices is None
                and (number == 1 or not _clicked_inside(model_prompts))
            ):  # the mask of a box is better than that of one click, or of negative clicks alone
                logits = self._honoured(correct_near_click(old, logits, roi, *clicks), roi, model_prompts)
            elif local:
                logits = self._honoured(keep_to_click(old, logits, roi, *clicks), roi, model_prompts)
        logits_mask = patch = mask_from_logits(logits, roi)
        if before is not None and (before.detailed or local):
            patch = _keep_detail(before, roi, logits_mask)
        state = settled_state(
            before, prompts, grid, roi, logits, patch, decoded.score, detailed=_detailed(before)
        )
        return replace(state, seen=logits_mask)

    def refined(
        self, state: PromptState, prompts: Prompts, progress: Progress | None, label: int | None = None
    ) -> tuple[Patch, tuple[int, ...]]:
        """Return the mask of a state with its outline redrawn in tiles, where these are finer.

        A window of 128 voxels per side is already as fine as the tiles of a window of 64.
        """
        grid, finest = self.volume.grid, self.framing.finest * float(self.volume.grid.spacing.min())
        mosaic = None
        if not state.detailed and not self.framing.fixed_mm and max(self.shape) < 2 * TILED_SIDE:
            mosaic = plan_tiles(state.logits, state.roi, grid, finest=finest, fill=constraints.EXCLUDED)
        if mosaic is None:
            return state.patch, state.unmet
        rough = replace(state, roi=mosaic.roi, logits=mosaic.logits, detailed=True)

        def decode_tile(roi: Roi, sure: NDArray[np.int8], number: int) -> torch.Tensor:
            if progress is not None:
                progress(f"Outline, tile {number + 1} of {len(mosaic.tiles)}", number / len(mosaic.tiles))
            return self._decode(roi, model_prompts, rough, label, sure).logits

        model_prompts = as_clicks(prompts)
        logits = constraints.keep_to_boxes(mosaic.redrawn(decode_tile), mosaic.roi, model_prompts)
        return constraints.settle(mask_from_logits(logits, mosaic.roi), prompts, grid.shape)

    def variants(
        self, before: PromptState | None, state: PromptState, prompts: Prompts, label: int | None = None
    ) -> torch.Tensor:
        """Return (V, X, Y, Z) logits of variants of a state on its window; see `uncertainty`.

        They are all candidates of decodes with the original clicks, with slightly moved clicks and, if there
        was a previous mask, without it. They differ where the model is uncertain.
        """
        reach = np.abs(np.diff(state.roi.to_file([[0, 0, 0], [1, 1, 1]]), axis=0))[0]
        last, model_prompts = np.asarray(self.volume.grid.shape) - 1, as_clicks(prompts)
        inputs: list[tuple[PromptState | None, Sequence[ModelPrompt]]] = [(before, model_prompts)]
        for number in range(MOVES):
            rng = np.random.default_rng(number)
            inputs.append(
                (before, tuple(_moved(p, MOVED * reach * rng.uniform(-1, 1, 3), last) for p in model_prompts))
            )
        if before is not None:
            inputs.append((None, model_prompts))
        embedding = self._embed(state.roi)
        learned = None if label is None else learned_prompt(self.model, label)
        logits = []
        for previous, shifted in inputs:
            prompted = prompts_in_roi(state.roi, shifted, previous, None, self.model.device, learned)
            logits.append(self.model.decode(embedding, prompted).logits[0].float().cpu())
        return torch.cat(logits)

    def alternatives(
        self, state: PromptState, prompts: Prompts, label: int | None = None
    ) -> Sequence[PromptState]:
        """Return the candidates of the state's window and of other windows around the same prompts.

        The other windows are the usual one of a first prompt, a wide one, and one narrower than that of the
        state. There are none with a 3D box, which determines the window, or with a slow model.
        """
        grid, framing, model_prompts = self.volume.grid, self.framing, as_clicks(prompts)
        rois: list[Roi | None] = [state.roi]
        boxed = any(isinstance(p, Box) and p.slice_axis is None for p in prompts)
        if framing.encodings > 1 and not framing.fixed_mm and not boxed:
            usual = first_roi(model_prompts, grid, self.shape, framing)
            rois += [usual, wider_roi(usual, grid, framing), narrower_roi(state.roi, grid, framing)]
        learned = None if label is None else learned_prompt(self.model, label)
        states = []
        for roi in dict.fromkeys(roi for roi in rois if roi is not None):
            encoded_prompts = prompts_in_roi(roi, model_prompts, None, None, self.model.device, learned)
            candidates = self.model.decode(self._embed(roi), encoded_prompts)
            scores = torch.nan_to_num(candidates.quality[0]).clamp(0, 1).tolist()
            for values, score in zip(candidates.logits[0].float().cpu(), scores, strict=True):
                logits = torch.nan_to_num(values, nan=constraints.EXCLUDED)
                logits = constraints.keep_to_boxes(logits, roi, model_prompts)
                logits = self._honoured(logits, roi, model_prompts)
                patch = mask_from_logits(logits, roi)
                found = settled_state(None, prompts, grid, roi, logits, patch, score, detailed=False)
                states.append(replace(found, seen=patch))
        return sorted(states, key=lambda found: -found.score)

    def _best_window(
        self,
        roi: Roi,
        prompts: Sequence[ModelPrompt],
        clicks: Sequence[Point],
        before: PromptState | None,
        label: int | None,
        *,
        settled: bool,
    ) -> tuple[Roi, Decoded]:
        """Return the window that fits the mask best, and what was decoded in it."""
        grid, framing = self.volume.grid, self.framing
        decoded = self._decode(roi, prompts, before, label)
        if settled:
            return roi, decoded
        # A positive click outside the mask: the object may be much larger than the window shows.
        clicked_outside = any(click.positive and not _holds(before, click, grid.shape) for click in clicks)
        remaining = framing.encodings - 1
        if clicked_outside and remaining and (wide := wider_roi(roi, grid, framing)) is not None:
            remaining -= 1
            in_wide = self._decode(wide, prompts, before, label)
            if in_wide.score > decoded.score + (framing.trust if before is None else framing.trust_again):
                roi, decoded = wide, in_wide
        for _ in range(remaining):
            better = better_roi(roi, (decoded.logits > 0).numpy(), prompts, grid, framing)
            if better is None:
                break
            roi = better
            decoded = self._decode(roi, prompts, before, label)
        return roi, decoded

    def _decode(
        self,
        roi: Roi,
        prompts: Sequence[ModelPrompt],
        before: PromptState | None,
        label: int | None = None,
        sure: NDArray[np.int8] | None = None,
    ) -> Decoded:
        """Return what the model decodes on a window, in agreement with all prompts."""
        learned = None if label is None else learned_prompt(self.model, label)
        encoded_prompts = prompts_in_roi(roi, prompts, before, sure, self.model.device, learned)
        if sure is not None or not self._redraws(prompts):
            return self._agreed(roi, prompts, [encoded_prompts])
        found = None
        if self._box_slices is not None:
            encoded = self._box_slices.encoded
            found = self._box_slices.probability(prompts, roi)
            self.encoded += self._box_slices.encoded - encoded
        if any(isinstance(prompt, Point) for prompt in prompts):
            fresh = prompts_in_roi(roi, prompts, None, None, self.model.device, learned)
            return self._agreed(roi, prompts, later_decodes(encoded_prompts, fresh, found, roi.shape))
        return self._agreed(roi, prompts, first_decodes(encoded_prompts, found, roi.shape), found=found)

    def _redraws(self, prompts: Sequence[UserPrompt]) -> bool:
        """Return whether there is a 3D box, whose rough outline is redrawn; an adapter was not trained to."""
        boxed = any(isinstance(prompt, Box) and prompt.slice_axis is None for prompt in prompts)
        return boxed and self.model.redraws_outlines and adapter_in_use(self.model) is None

    def _agreed(
        self,
        roi: Roi,
        prompts: Sequence[ModelPrompt],
        decodes: Sequence[RoiPrompts],
        *,
        found: torch.Tensor | None = None,
    ) -> Decoded:
        """Return the mean of several decodes, in agreement with all prompts.

        Args:
            roi: the window.
            prompts: all prompts.
            decodes: what is decoded.
            found: (X, Y, Z) a further probability for the mean.
        """
        embedding = self._embed(roi)
        results = [self.model.decode(embedding, one).best() for one in decodes]
        values = [
            torch.nan_to_num(logits[0, 0].float().cpu(), nan=constraints.EXCLUDED) for logits, _ in results
        ]
        if found is not None:
            values.append(torch.logit(found.clamp(EDGE, 1 - EDGE)))
        mean = constraints.keep_to_boxes(mean_logits(values), roi, prompts)
        score = float(np.mean([float(torch.nan_to_num(quality[0]).clamp(0, 1)) for _, quality in results]))
        return Decoded(self._honoured(mean, roi, prompts), score)

    def _honoured(self, logits: torch.Tensor, roi: Roi, prompts: Sequence[ModelPrompt]) -> torch.Tensor:
        """Return the logits of an encoded window, repaired to honour every click."""
        points = [p for p in prompts if isinstance(p, Point)]
        image = self._embed(roi).image[0, -1].float().cpu()
        return constraints.honour_points(logits, image, roi, points, self.volume.grid.shape)

    def _embed(self, roi: Roi) -> Embedding:
        """Return the embedding of a window, from the cache if possible."""
        key = (*cache_key(self.model), self.volume.fingerprint, roi)
        embedding, encoded = self.cache.get_or_make(key, lambda: self._encode(roi))
        self.encoded += encoded
        return embedding

    def _encode(self, roi: Roi) -> Embedding:
        image, valid = (t[None, None].to(self.model.device) for t in read_roi(self.volume.array, roi))
        return self.model.encode_image(image, valid)

    def _from_mask(self, before: PromptState | None, prompts: Prompts, mask: MaskPrompt) -> PromptState:
        """Return the state of a mask prompt, unchanged by the model."""
        roi = first_roi(as_clicks(prompts), self.volume.grid, self.shape, self.framing)
        patch = mask.patch()
        inside, valid = read_roi(patch.to_array(mask.shape), roi)
        logits = torch.where(valid, torch.logit(inside, eps=0.02), constraints.EXCLUDED)
        return settled_state(before, prompts, self.volume.grid, roi, logits, patch, 1.0, detailed=True)


def _moved(prompt: ModelPrompt, by: NDArray[np.float64], last: NDArray[np.int_]) -> ModelPrompt:
    """Return a click moved within the volume; other prompts are returned unchanged."""
    if not isinstance(prompt, Point):
        return prompt
    i, j, k = np.clip(np.add(prompt.coordinates, by), 0, last).tolist()
    return Point(coordinates=(i, j, k), positive=prompt.positive)


def _holds(before: PromptState | None, click: Point, shape: Sequence[int]) -> bool:
    """Return whether a click lies inside the mask before it."""
    if before is None:
        return False
    return before.patch.value_at(constraints.nearest_voxel(click, shape))


def _clicked_inside(prompts: Sequence[ModelPrompt]) -> bool:
    return any(isinstance(prompt, Point) and prompt.positive for prompt in prompts)


def _detailed(before: PromptState | None) -> bool:
    return before is not None and before.detailed


def _keep_detail(before: PromptState, roi: Roi, seen: Patch) -> Patch:
    """Return the new mask, with the finer earlier outline where the prompt changed nothing.

    Args:
        before: the state before the prompt.
        roi: the window.
        seen: the mask from the window's logits after the prompt.
    """
    coarse = before.seen
    if coarse is None or before.roi != roi:
        moved = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
        coarse = mask_from_logits(moved, roi)
    if coarse is before.patch:  # the earlier mask has no more detail than its logits
        return seen
    detail = coarse.difference(before.patch)
    if detail is None:
        return seen
    new, old, fine = (patch.within(detail) for patch in (seen, coarse, before.patch))
    return seen.overlaid(Patch(detail[0], np.where(new == old, fine, new))).tight()
