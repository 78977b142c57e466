"""Engine of 2D models: each prompt decodes a key slice, whose mask propagates to its neighbours."""

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
from medsam_app.models.sam2d import SliceSegmenter
from medsam_app.models.slice_input import apply_window
from medsam_app.predict.core import constraints
from medsam_app.predict.core.click_edit import mend_near_click
from medsam_app.predict.core.engine import Prompts, settled_state
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.core.prediction import PromptState
from medsam_app.predict.slicewise.encoded_prompts import Click, SlicePrompts, slice_axis
from medsam_app.predict.slicewise.propagation import DecodedSlice, Propagation
from medsam_app.predict.slicewise.stack import SliceLogits, SliceStack, acquisition_axis
from medsam_app.predict.slicewise.walk import SliceWalk
from medsam_app.progress import Progress
from medsam_app.prompts.types import MaskPrompt, ModelPrompt, Point, as_clicks

#: Logits are held within this, so that averages of two are not the louder one's.
LOUDEST = 10.0
#: Logit of a mask that was given, inside and with the other sign outside: not as sure as a model can be.
GIVEN = np.float32(4.0)
#: Voxels kept around a positive click, in which the mask can be corrected to honour it.
CLICK_ROOM = 4
#: HU shown black and white for soft tissue (level 40, width 400), and what only CT goes below.
SOFT_TISSUE, AIR = (-160.0, 240.0), -900
#: About this many voxels are examined for the percentiles of a volume.
SAMPLE = 1_000_000


class SliceEngine:
    """A 2D model on one volume; see `Engine`.

    The newest prompt makes a key slice: a click the slice it lies on, a flat box its own, a 3D box its
    middle one (and no slice beyond it is decoded). The model sees the key slice with all its prompts and
    the mask that was there; then slice after slice in both directions, each with the box around the mask
    before it, the deepest point of that mask and its logits, until the object ends (`why_ended`), another
    key slice is reached or the mask agrees with the one that was there. Between two key slices both masks
    count, each the more the nearer its key slice is. Where a negative click made the object end, what lies
    beyond is no part of it.

    Args:
        model: encodes and decodes slices.
        volume: what is segmented.
        cache: where embeddings of slices are remembered.
        propagation: settings.
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
        """The state after the last prompt, from the state before it."""
        newest, grid = prompts[-1], self.volume.grid
        if isinstance(newest, MaskPrompt):
            return self._from_mask(before, prompts, newest)
        told, added = as_clicks(prompts), as_clicks([newest])
        last = told[-1]
        assert not isinstance(last, MaskPrompt)  # nor is the newest
        stack = SliceStack(grid, slice_axis(told, grid))
        logits = SliceLogits(stack.shape[1:])
        if before is not None:
            logits = SliceLogits.of(stack.shape[1:], *stack.from_roi(before.logits, before.roi))
        asked = SlicePrompts(stack, told)
        window = self.window_of(told)
        walk = SliceWalk(_Looker(self, stack, window), asked, logits, self.settings, progress=progress)
        walk.run(clear_beyond=isinstance(last, Point) and not last.positive)

        clicks = [p for p in told if isinstance(p, Point)]
        near = [p.coordinates for p in clicks if p.positive]
        if not near and not logits.slices:  # no mask at all: any window will do
            near = [last.coordinates if isinstance(last, Point) else last.lower]
        points = stack.points(np.array(near, dtype=float).reshape(-1, 3))
        start, part = logits.dense(stack.shape, points, CLICK_ROOM)
        values, roi = stack.to_roi(start, part)
        values = constraints.keep_to_boxes(values, roi, told)
        box = box_slices(start, np.add(start, part.shape))
        look, _ = stack.to_roi(start, apply_window(stack.from_file(self.volume.array)[box], window) * 2 - 1)
        values = constraints.honour_points(values, look, roi, clicks, grid.shape)
        detailed = before is not None and before.detailed
        mending = [p for p in added if isinstance(p, Point)]
        if before is not None and detailed and mending:
            old = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
            values = mend_near_click(old, values, roi, *mending)
        patch = mask_from_logits(values, roi)
        score = _score(walk.quality, logits, before)
        return settled_state(before, prompts, grid, roi, values, patch, score, detailed=detailed)

    def refined(
        self, state: PromptState, prompts: Prompts, progress: Progress | None, label: int | None = None
    ) -> tuple[Patch, tuple[int, ...]]:
        """Return the mask of a state unchanged, since slices have the volume's own resolution."""
        return state.patch, state.unmet

    def _from_mask(self, before: PromptState | None, prompts: Prompts, mask: MaskPrompt) -> PromptState:
        """The state of a mask given as it is."""
        grid = self.volume.grid
        stack = SliceStack(grid, acquisition_axis(grid))
        patch = mask.patch()
        last = np.array(mask.stop) - 1
        start = stack.points(np.stack([mask.start, last])).min(axis=0)
        values, roi = stack.to_roi(start, np.where(stack.from_file(patch.mask), GIVEN, -GIVEN))
        return settled_state(before, prompts, grid, roi, values, patch, 1.0, detailed=True)

    def embed(self, stack: SliceStack, index: int, window: tuple[float, float]) -> Any:
        """Return the embedding of a slice, from the cache if possible."""
        key = (*cache_key(self.model), self.volume.fingerprint, "slice", stack.axis, index, window)
        image = stack.from_file(self.volume.array)[index]
        pixel = float(stack.spacing[1]), float(stack.spacing[2])
        embedding, made = self.cache.get_or_make(
            key, lambda: self.model.encode_slice(image, window=window, pixel=pixel)
        )
        self.encoded += made
        return embedding

    def window_of(self, prompts: Sequence[ModelPrompt]) -> tuple[float, float]:
        """Return the intensities shown as black and white.

        They are those of soft tissue if the object of a CT is first prompted there, as in MedSAM's training
        slices, otherwise the range of the volume.
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
        """The 0.5 and 99.5 percentiles of the volume's intensities."""
        step = max(1, round((self.volume.array.size / SAMPLE) ** (1 / 3)))
        low, high = np.percentile(self.volume.array[::step, ::step, ::step], (0.5, 99.5))
        return float(low), float(high)


class _Looker:
    """The engine's model on the slices of one pile; see `Looker`."""

    def __init__(self, engine: SliceEngine, stack: SliceStack, window: tuple[float, float]) -> None:
        self.engine = engine
        self.stack = stack
        self.window = window

    def look(
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
        found = model.decode_slice(
            embedding,
            points=np.stack([at for at, _ in clicks]) if clicks else None,
            labels=[int(positive) for _, positive in clicks] if clicks else None,
            box=box,
            mask=mask,
        )
        best = int(found.quality.argmax())
        logits = torch.nan_to_num(found.logits[best].float(), nan=-LOUDEST).clamp(-LOUDEST, LOUDEST)
        quality = float(torch.nan_to_num(found.quality[best]).clamp(0, 1))
        return DecodedSlice(logits.cpu().numpy(), found.low_res[best], quality)

    def low_res(self, index: int, logits: NDArray[np.float32]) -> torch.Tensor:
        return self.engine.model.low_res(
            self.engine.embed(self.stack, index, self.window), torch.from_numpy(logits)
        )

    def shown(self, index: int) -> NDArray[np.float32]:
        return apply_window(self.stack.from_file(self.engine.volume.array)[index], self.window)


def _score(quality: dict[int, float], logits: SliceLogits, before: PromptState | None) -> float:
    """Predicted Dice of the mask: the mean over its slices, each weighing as much as it has voxels."""
    voxels = {index: logits.voxels(index) for index in logits.slices}
    total = sum(voxels.values())
    if not total:
        return 0.0
    kept = before.score if before is not None else 0.0
    # Dice of an IoU q.
    dices = {index: 2 * q / (1 + q) for index, q in quality.items()}
    return sum(n * dices.get(index, kept) for index, n in voxels.items()) / total
