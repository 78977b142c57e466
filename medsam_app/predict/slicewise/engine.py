"""Engine of 2D models: prompts decode a key slice, whose mask propagates to others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.patch import Patch, box_slices
from medsam_app.grid.roi import mask_from_logits, move_values
from medsam_app.io.volume import Volume
from medsam_app.models.identity import cache_key
from medsam_app.models.slices.sam2d import SliceSegmenter
from medsam_app.models.slices.slice_input import apply_window
from medsam_app.predict.core import constraints
from medsam_app.predict.core.click_edit import correct_near_click
from medsam_app.predict.core.engine import Prompts, settled_state
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.core.prediction import PromptState
from medsam_app.predict.slicewise.encoded_prompts import Click, SlicePrompts, slice_axis
from medsam_app.predict.slicewise.propagation import DecodedSlice, Propagation
from medsam_app.predict.slicewise.stack import SliceLogits, SliceStack, acquisition_axis
from medsam_app.predict.slicewise.walk import SliceWalk
from medsam_app.progress import Progress
from medsam_app.prompts.types import MaskPrompt, ModelPrompt, Point, as_clicks

#: Largest absolute logit, so that in an average of two slices neither dominates.
MAX_LOGIT = 10.0
#: Logit of a mask prompt, positive inside and negative outside; less confident than a model can be.
MASK_LOGIT = np.float32(4.0)
#: Margin in voxels around a positive click, in which the mask can be corrected to honour it.
CLICK_ROOM = 4
#: Soft tissue window in HU (level 40, width 400), and an intensity below which only CT goes.
SOFT_TISSUE, AIR = (-160.0, 240.0), -900
#: Approximate number of voxels sampled for the percentiles of a volume.
SAMPLE = 1_000_000


class SliceEngine:
    """A 2D model on one volume; see `Engine`.

    The newest prompt determines the key slice: the slice of a click or a flat box, the middle slice of a 3D
    box. No slice outside a 3D box is decoded. The key slice is decoded with all its prompts and its earlier
    mask. Then its neighbours are decoded one by one in both directions, each with the box around the previous
    slice's mask, the deepest point of that mask and its logits. This ends when the object ends (`why_ended`),
    another key slice is reached, or the new mask agrees with the earlier one. Between two key slices both
    masks are averaged, with weights by distance. If a negative click ended the object, masks beyond that
    slice are removed.

    Args:
        model: encodes and decodes slices.
        volume: the volume to segment.
        cache: cache of the slices' embeddings.
        propagation: settings of the propagation.
    """

    def __init__(
        self, model: SliceSegmenter, volume: Volume, cache: EmbeddingCache, propagation: Propagation
    ) -> None:
        self.model = model
        self.volume = volume
        self.cache = cache
        self.settings = propagation
        self.encoded = 0

    def step(
        self,
        before: PromptState | None,
        prompts: Prompts,
        progress: Progress | None,
        label: int | None = None,
    ) -> PromptState:
        """Return the state after the last prompt; see `Engine`."""
        newest, grid = prompts[-1], self.volume.grid
        if isinstance(newest, MaskPrompt):
            return self._from_mask(before, prompts, newest)
        model_prompts, added = as_clicks(prompts), as_clicks([newest])
        last = model_prompts[-1]
        assert not isinstance(last, MaskPrompt)  # the newest prompt is no mask
        stack = SliceStack(grid, slice_axis(model_prompts, grid))
        logits = SliceLogits(stack.shape[1:])
        if before is not None:
            logits = SliceLogits.of(stack.shape[1:], *stack.from_roi(before.logits, before.roi))
        on_slices = SlicePrompts(stack, model_prompts)
        window = self.window_of(model_prompts)
        walk = SliceWalk(
            _EngineDecoder(self, stack, window), on_slices, logits, self.settings, progress=progress
        )
        walk.run(clear_beyond=isinstance(last, Point) and not last.positive)

        clicks = [p for p in model_prompts if isinstance(p, Point)]
        near = [p.coordinates for p in clicks if p.positive]
        if not near and not logits.slices:  # no mask yet: any window will do
            near = [last.coordinates if isinstance(last, Point) else last.lower]
        points = stack.points(np.array(near, dtype=float).reshape(-1, 3))
        start, part = logits.dense(stack.shape, points, CLICK_ROOM)
        values, roi = stack.to_roi(start, part)
        values = constraints.keep_to_boxes(values, roi, model_prompts)
        box = box_slices(start, np.add(start, part.shape))
        shown, _ = stack.to_roi(start, apply_window(stack.from_file(self.volume.array)[box], window) * 2 - 1)
        values = constraints.honour_points(values, shown, roi, clicks, grid.shape)
        detailed = before is not None and before.detailed
        new_clicks = [p for p in added if isinstance(p, Point)]
        if before is not None and detailed and new_clicks:
            old = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
            values = correct_near_click(old, values, roi, *new_clicks)
        patch = mask_from_logits(values, roi)
        score = _score(walk.quality, logits, before)
        return settled_state(before, prompts, grid, roi, values, patch, score, detailed=detailed)

    def refined(
        self, state: PromptState, prompts: Prompts, progress: Progress | None, label: int | None = None
    ) -> tuple[Patch, tuple[int, ...]]:
        """Return the mask of a state unchanged: slices already have the volume's resolution."""
        return state.patch, state.unmet

    def alternatives(
        self, state: PromptState, prompts: Prompts, label: int | None = None
    ) -> Sequence[PromptState]:
        """Return nothing: each slice would have alternatives of its own."""
        return ()

    def _from_mask(self, before: PromptState | None, prompts: Prompts, mask: MaskPrompt) -> PromptState:
        """Return the state of a mask prompt, unchanged by the model."""
        grid = self.volume.grid
        stack = SliceStack(grid, acquisition_axis(grid))
        patch = mask.patch()
        last = np.array(mask.stop) - 1
        start = stack.points(np.stack([mask.start, last])).min(axis=0)
        values, roi = stack.to_roi(start, np.where(stack.from_file(patch.mask), MASK_LOGIT, -MASK_LOGIT))
        return settled_state(before, prompts, grid, roi, values, patch, 1.0, detailed=True)

    def embed(self, stack: SliceStack, index: int, window: tuple[float, float]) -> Any:
        """Return the embedding of a slice, from the cache if possible."""
        key = (*cache_key(self.model), self.volume.fingerprint, "slice", stack.axis, index, window)
        image = stack.from_file(self.volume.array)[index]
        pixel = float(stack.spacing[1]), float(stack.spacing[2])
        embedding, encoded = self.cache.get_or_make(
            key, lambda: self.model.encode_slice(image, window=window, pixel=pixel)
        )
        self.encoded += encoded
        return embedding

    def window_of(self, prompts: Sequence[ModelPrompt]) -> tuple[float, float]:
        """Return the intensities displayed as black and white.

        For a CT whose first prompt lies on soft tissue, it is the soft tissue window, as in MedSAM's training
        slices; otherwise the range of the volume.
        """
        low, high = self._percentiles
        first = next(prompt for prompt in prompts if not isinstance(prompt, MaskPrompt))
        if self.volume.modality == "CT" or float(self.volume.array.min()) < AIR:
            at = first.coordinates if isinstance(first, Point) else np.add(first.lower, first.upper) / 2
            voxel = np.clip(np.round(at), 0, np.asarray(self.volume.grid.shape) - 1).astype(int)
            if SOFT_TISSUE[0] <= float(self.volume.array[tuple(voxel)]) <= SOFT_TISSUE[1]:
                return SOFT_TISSUE
        return low, high

    @cached_property
    def _percentiles(self) -> tuple[float, float]:
        """The 0.5th and 99.5th percentile of the volume's intensities."""
        step = max(1, round((self.volume.array.size / SAMPLE) ** (1 / 3)))
        low, high = np.percentile(self.volume.array[::step, ::step, ::step], (0.5, 99.5))
        return float(low), float(high)


class _EngineDecoder:
    """The engine's model on the slices of one stack; see `SliceDecoder`."""

    def __init__(self, engine: SliceEngine, stack: SliceStack, window: tuple[float, float]) -> None:
        self.engine = engine
        self.stack = stack
        self.window = window

    def decode(
        self,
        index: int,
        *,
        box: NDArray[np.float64] | None,
        clicks: Sequence[Click],
        mask: torch.Tensor | None,
    ) -> DecodedSlice:
        model = self.engine.model
        embedding = self.engine.embed(self.stack, index, self.window)
        if model.boxes_only and box is not None:
            clicks, mask = [], None
        output = model.decode_slice(
            embedding,
            points=np.stack([at for at, _ in clicks]) if clicks else None,
            labels=[int(positive) for _, positive in clicks] if clicks else None,
            box=box,
            mask=mask,
        )
        best = int(output.quality.argmax())
        logits = torch.nan_to_num(output.logits[best].float(), nan=-MAX_LOGIT).clamp(-MAX_LOGIT, MAX_LOGIT)
        quality = float(torch.nan_to_num(output.quality[best]).clamp(0, 1))
        return DecodedSlice(logits.cpu().numpy(), output.low_res[best], quality)

    def low_res(self, index: int, logits: NDArray[np.float32]) -> torch.Tensor:
        return self.engine.model.low_res(
            self.engine.embed(self.stack, index, self.window), torch.from_numpy(logits)
        )

    def image(self, index: int) -> NDArray[np.float32]:
        return apply_window(self.stack.from_file(self.engine.volume.array)[index], self.window)


def _score(quality: dict[int, float], logits: SliceLogits, before: PromptState | None) -> float:
    """Return the predicted Dice of the mask: the mean over its slices, weighted by their voxels."""
    voxels = {index: logits.voxels(index) for index in logits.slices}
    total = sum(voxels.values())
    if not total:
        return 0.0
    score_before = before.score if before is not None else 0.0
    # The Dice of an IoU q is 2 q / (1 + q).
    dices = {index: 2 * q / (1 + q) for index, q in quality.items()}
    return sum(n * dices.get(index, score_before) for index, n in voxels.items()) / total
