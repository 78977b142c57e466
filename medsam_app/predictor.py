"""VolumePredictor: prompts on a volume in, a mask on the file's own grid out.

    predictor = VolumePredictor()
    predictor.set_volume(load_volume("ct.nii.gz"))
    prediction = predictor.predict(points=[(120, 90, 40)], point_labels=[1])
    prediction.mask      # (i, j, k) bool

A mask is a pure function of the volume, the model, the settings and the sequence of prompts. Clicks
are taken one by one, each with the mask of those before it, as a person gives them; what every
prefix gave is remembered, so that undo, redo and one more click cost little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import RLock

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medsam_app import compliance
from medsam_app.cache import BytesCache, EmbeddingCache
from medsam_app.errors import PromptError
from medsam_app.framing import Framing, better_roi, first_roi, holds_points, roi_with_points, wider_roi
from medsam_app.local_edit import mend_near_click
from medsam_app.models.load import choose_device, load_model
from medsam_app.models.sam3d import Embedding, Sam3D
from medsam_app.prediction import MaskPrediction, State, difference_box, on_box, union_box
from medsam_app.prompts import Box, MaskPrompt, Point, check_prompts, prompts_from_arrays
from medsam_app.roi import Index, Roi, mask_from_logits, move_values, read_roi, tight
from medsam_app.roi_prompts import prompts_in_roi
from medsam_app.tiles import plan_tiles
from medsam_app.volume import Volume

AnyPrompt = Point | Box | MaskPrompt
Progress = Callable[[str, float], None]
#: Memory for embeddings and for the masks of prefixes.
CACHE_BYTES = 512 << 20
STATE_BYTES = 256 << 20


class VolumePredictor:
    """Segments objects of one volume at a time from prompts.

    Safe to call from several threads: calls on one predictor wait for each other. Predictors may
    share a model and a cache.

    Args:
        model: name of a model, or one that is loaded.
        device: 'auto', 'cpu', 'cuda', ...; where a named model runs.
        cache: embeddings shared with other predictors; by default an own one.
        cache_bytes: size of the own cache.
        framing: how the window is chosen.
        refine: whether the outline of an object that is large for one window is drawn again in tiles of
            finer spacing, unless a call says otherwise. It takes a few seconds an object and call.
    """

    def __init__(
        self,
        model: str | Sam3D = "sam3d_tiny",
        *,
        device: str = "auto",
        cache: EmbeddingCache | None = None,
        cache_bytes: int = CACHE_BYTES,
        framing: Framing | None = None,
        refine: bool = True,
    ) -> None:
        self.model = load_model(model, device=choose_device(device)[0]) if isinstance(model, str) else model
        self.cache = EmbeddingCache(cache_bytes) if cache is None else cache
        self.framing = framing or Framing()
        self.refine = refine
        self._volume: Volume | None = None
        self._states: BytesCache[State] = BytesCache(STATE_BYTES)
        self._lock = RLock()
        self._encoded = 0

    @property
    def volume(self) -> Volume:
        """The volume that is segmented.

        Raises:
            PromptError: none was set.
        """
        if self._volume is None:
            raise PromptError("No volume is set; call set_volume with a volume before predicting.")
        return self._volume

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume; what was remembered of the one before is forgotten."""
        with self._lock:
            self._volume = volume
            self._states.clear()

    def predict(
        self,
        *,
        points: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: NDArray | None = None,
        refine: bool | None = None,
        progress: Progress | None = None,
    ) -> MaskPrediction:
        """Segment from arrays. The mask comes first, then the boxes, then the points.

        Args:
            points: (N, 3) voxel indices (i, j, k).
            point_labels: (N,) 1 = inside, 0 = outside; all inside by default.
            boxes: (M, 2, 3) opposite corners in voxel indices, both included.
            mask_input: (i, j, k) mask to refine, on the volume's grid.
            refine: as for the predictor, for this call.
            progress: called with a sentence and a fraction done.

        Raises:
            PromptError: arrays of a wrong shape, prompts outside the volume, or nothing to start from.
        """
        prompts = prompts_from_arrays(points, point_labels, boxes, mask_input)
        return self.predict_prompts(prompts, refine=refine, progress=progress)

    def predict_prompts(
        self, prompts: Sequence[AnyPrompt], *, refine: bool | None = None, progress: Progress | None = None
    ) -> MaskPrediction:
        """Segment from a sequence of prompts, in the order they were given.

        A mask alone comes back as it is, and clicks mend it where they fall; a box bounds the mask up to a
        tenth of its size; clicks are honoured voxel by voxel, and where two contradict each other the
        later one.

        Args:
            prompts: points, boxes and masks of one object.
            refine: as for the predictor, for this call.
            progress: called with a sentence and a fraction done.

        Raises:
            PromptError: prompts outside the volume, or nothing to start from.
        """
        began = time.perf_counter()
        prompts = tuple(prompts)
        with self._lock, torch.inference_mode():
            grid = self.volume.grid
            check_prompts(prompts, grid)
            first = _first_step(prompts)
            encoded_before = self._encoded
            end, state = len(prompts), None
            while end >= first and (state := self._states.get(prompts[:end])) is None:
                end -= 1
            for done in range(max(end + 1, first), len(prompts) + 1):
                if progress is not None and done < len(prompts):
                    progress(f"Prompt {done} of {len(prompts)}", done / len(prompts))
                state = self._step(state, prompts[:done])
                self._states.put(prompts[:done], state)
            assert state is not None  # first <= len(prompts)
            start, patch, unmet = state.start, state.patch, state.unmet
            if self.refine if refine is None else refine:
                start, patch, unmet = self._refined(state, prompts, progress)
            return MaskPrediction(
                grid=grid,
                start=start,
                patch=patch,
                score=state.score,
                unmet=unmet,
                changed_box=state.changed,
                roi=state.roi,
                encoded=self._encoded - encoded_before,
                seconds=time.perf_counter() - began,
            )

    def _step(self, before: State | None, prompts: tuple[AnyPrompt, ...]) -> State:
        """The state after the last prompt, from the state before it."""
        grid, newest = self.volume.grid, prompts[-1]
        if isinstance(newest, MaskPrompt):
            return self._from_mask(before, prompts, newest)
        if before is None or isinstance(newest, Box):
            roi = first_roi(prompts, grid, self.model.roi_shape, self.framing)
        elif holds_points(before.roi, prompts, self.framing):
            roi = before.roi
        else:
            roi = roi_with_points(before.roi, (before.logits > 0).numpy(), prompts, grid, self.framing)
        # A box or a given mask has already set the window.
        settled = _detailed(before) or any(isinstance(p, Box) and p.slice_axis is None for p in prompts)
        roi, logits, score = self._best_window(roi, prompts, before, settled=settled)
        if before is not None and before.detailed and isinstance(newest, Point):
            old = move_values(before.logits, before.roi, roi, fill=compliance.EXCLUDED)
            logits = mend_near_click(old, logits, roi, newest)
        start, patch = mask_from_logits(logits, roi)
        if before is not None and before.detailed:
            start, patch = _keep_detail(before, roi, start, patch)
        return self._finish(before, prompts, roi, logits, start, patch, score, detailed=_detailed(before))

    def _refined(
        self, state: State, prompts: tuple[AnyPrompt, ...], progress: Progress | None
    ) -> tuple[Index, NDArray[np.bool_], tuple[int, ...]]:
        """The mask of a state with its outline drawn in tiles, where that shows more."""
        grid, finest = self.volume.grid, self.framing.finest * float(self.volume.grid.spacing.min())
        mosaic = None
        if not state.detailed:
            mosaic = plan_tiles(state.logits, state.roi, grid, finest=finest, fill=compliance.EXCLUDED)
        if mosaic is None:
            return state.start, state.patch, state.unmet
        rough = replace(state, roi=mosaic.roi, logits=mosaic.logits, detailed=True)

        def look(roi: Roi, sure: NDArray[np.int8], number: int) -> torch.Tensor:
            if progress is not None:
                progress(f"Outline, tile {number + 1} of {len(mosaic.tiles)}", number / len(mosaic.tiles))
            return self._decode(roi, prompts, rough, sure)[0]

        logits = compliance.keep_to_boxes(mosaic.redrawn(look), mosaic.roi, prompts)
        return compliance.settle(*mask_from_logits(logits, mosaic.roi), prompts, grid.shape)

    def _best_window(
        self, roi: Roi, prompts: tuple[AnyPrompt, ...], before: State | None, *, settled: bool
    ) -> tuple[Roi, torch.Tensor, float]:
        """The window that suits the mask best, with logits and predicted quality there."""
        grid, framing, newest = self.volume.grid, self.framing, prompts[-1]
        logits, score = self._decode(roi, prompts, before)
        if settled:
            return roi, logits, score
        # A click that says the object goes on elsewhere: it may be much larger than it seemed.
        missed = isinstance(newest, Point) and newest.positive and not _holds(before, newest, grid.shape)
        more = framing.encodings - 1
        if missed and more and (wide := wider_roi(roi, grid, framing)) is not None:
            more -= 1
            seen, thought = self._decode(wide, prompts, before)
            if thought > score + framing.trust:
                roi, logits, score = wide, seen, thought
        for _ in range(more):
            wanted = better_roi(roi, (logits > 0).numpy(), prompts, grid, framing)
            if wanted is None:
                break
            roi = wanted
            logits, score = self._decode(roi, prompts, before)
        return roi, logits, score

    def _decode(
        self,
        roi: Roi,
        prompts: tuple[AnyPrompt, ...],
        before: State | None,
        sure: NDArray[np.int8] | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Logits (X, Y, Z) on a window, prompts honoured, and the predicted quality."""
        embedding = self._embed(roi)
        asked = prompts_in_roi(roi, prompts, before, sure, self.model.device)
        logits, quality = self.model.decode(embedding, asked).best()
        values = torch.nan_to_num(logits[0, 0].float().cpu(), nan=compliance.EXCLUDED)
        values = compliance.keep_to_boxes(values, roi, prompts)
        points = [p for p in prompts if isinstance(p, Point)]
        look = embedding.image[0, -1].float().cpu()
        values = compliance.honour_points(values, look, roi, points, self.volume.grid.shape)
        return values, float(torch.nan_to_num(quality[0]).clamp(0, 1))

    def _embed(self, roi: Roi) -> Embedding:
        """The embedding of a window, from the cache where it is there."""
        weights = self.model.weights_sha256 or id(self.model)
        key = (self.model.model_id, weights, self.model.adapter_sha256, self.volume.fingerprint, roi)
        embedding, made = self.cache.get_or_make(key, lambda: self._encode(roi))
        self._encoded += made
        return embedding

    def _encode(self, roi: Roi) -> Embedding:
        image, valid = (t[None, None].to(self.model.device) for t in read_roi(self.volume.array, roi))
        return self.model.encode_image(image, valid)

    def _from_mask(self, before: State | None, prompts: tuple[AnyPrompt, ...], mask: MaskPrompt) -> State:
        """The state of a mask given as it is."""
        roi = first_roi(prompts, self.volume.grid, self.model.roi_shape, self.framing)
        whole = mask.to_array()
        inside, valid = read_roi(whole, roi)
        logits = torch.where(valid, torch.logit(inside, eps=0.02), compliance.EXCLUDED)
        patch = whole[tuple(slice(a, b) for a, b in zip(mask.start, mask.stop, strict=True))]
        return self._finish(before, prompts, roi, logits, mask.start, patch, 1.0, detailed=True)

    def _finish(
        self,
        before: State | None,
        prompts: tuple[AnyPrompt, ...],
        roi: Roi,
        logits: torch.Tensor,
        start: Index,
        patch: NDArray[np.bool_],
        score: float,
        *,
        detailed: bool,
    ) -> State:
        start, patch, unmet = compliance.settle(start, patch, prompts, self.volume.grid.shape)
        patch.setflags(write=False)
        old = (start, patch[:0]) if before is None else (before.start, before.patch)
        return State(roi, logits, detailed, start, patch, score, unmet, difference_box(*old, start, patch))


def _holds(before: State | None, click: Point, shape: Sequence[int]) -> bool:
    """Whether a click lies inside the mask before it."""
    if before is None:
        return False
    return compliance.value_of(before.start, before.patch, compliance.nearest_voxel(click, shape))


def _detailed(before: State | None) -> bool:
    return before is not None and before.detailed


def _keep_detail(
    before: State, roi: Roi, start: Index, patch: NDArray[np.bool_]
) -> tuple[Index, NDArray[np.bool_]]:
    """Where a prompt did not change the mask as the window sees it, keep the finer mask of before."""
    moved = move_values(before.logits, before.roi, roi, fill=compliance.EXCLUDED)
    coarse = mask_from_logits(moved, roi)
    box = union_box((start, patch), coarse, (before.start, before.patch))
    new, old = on_box(start, patch, box), on_box(*coarse, box)
    return tight(box[0], np.where(new == old, on_box(before.start, before.patch, box), new))


def _first_step(prompts: Sequence[AnyPrompt]) -> int:
    """How many prompts it takes to start: up to the first that says where the object is."""
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, Point) or prompt.positive:
            return number
    if not prompts:
        raise PromptError("There is no prompt; give a positive click, a box or a mask to start from.")
    raise PromptError(
        f"All {len(prompts)} clicks are negative, which says only where the object is not; "
        "start with a positive click or a box."
    )
