"""Predictor of masks on a volume's own grid from prompts.

    predictor = VolumePredictor()
    predictor.set_volume(load_volume("ct.nii.gz"))
    prediction = predictor.predict(points=[(120, 90, 40)], point_labels=[1])
    prediction.mask      # (i, j, k) bool

A mask is a pure function of the volume, the model, the settings and the sequence of prompts. Prompts are
decoded one by one, each with the mask of the previous ones. The state after every prefix is cached, so that
undo, redo and one more click are cheap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from threading import RLock
from typing import cast

import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from medsam_app.adapters.adapter import Adapter, adapter_in_use, learned_prompt
from medsam_app.adapters.label_card import name_of
from medsam_app.errors import PromptError, SettingsError
from medsam_app.grid.roi import Roi
from medsam_app.io.volume import Volume
from medsam_app.models.load import choose_device, load_model
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.slices.sam2d import SliceSegmenter
from medsam_app.predict.core.constraints import unmet_prompts
from medsam_app.predict.core.engine import Engine, distinct, first_step
from medsam_app.predict.core.expected_dice import CALIBRATIONS
from medsam_app.predict.core.feature_cache import BytesCache, EmbeddingCache
from medsam_app.predict.core.paint_layer import Layer, prompts_for_model
from medsam_app.predict.core.prediction import Alternative, LabelMap, MaskPrediction, PackedState, PromptState
from medsam_app.predict.slicewise.engine import SliceEngine
from medsam_app.predict.slicewise.propagation import Propagation
from medsam_app.predict.windowed.engine import WindowEngine
from medsam_app.predict.windowed.window_choice import Framing
from medsam_app.progress import Progress
from medsam_app.prompts.types import (
    AnyPrompt,
    Box,
    Choice,
    MaskPrompt,
    Paint,
    UserPrompt,
    check_prompts,
    choice_place,
    prompts_from_arrays,
    with_choice,
    without_choices,
)

AnyModel = Sam3D | SliceSegmenter
#: Limit of the embedding cache, in bytes.
CACHE_BYTES = 512 << 20
#: Limits of the cache of prompt prefixes: number of states on windows of the model's shape, and bytes.
STATES, STATE_BYTES = 64, 256 << 20


class VolumePredictor:
    """Promptable segmentation of objects in one volume at a time.

    Safe to use from several threads: calls on one predictor run one after another. Predictors may share a
    model and a cache.

    Args:
        model: name of a model, or a loaded model.
        weights: checkpoint to load instead of the published one; only for a model given by name.
        adapter: file of an adapter to attach to the model and enable.
        device: 'auto', 'cpu', 'cuda', ...; only for a model given by name.
        cache: embeddings shared with other predictors; None for a new cache.
        cache_bytes: limit of the new cache, in bytes.
        framing: settings of the window choice of 3D models.
        propagation: settings of the propagation between slices of 2D models.
        refine: whether to redraw the outline of an object that is large for one window in tiles of finer
            spacing, unless a call overrides it. It takes a few seconds per object and call. 2D models
            ignore it.
    """

    def __init__(  # noqa: PLR0913 - public, by keyword
        self,
        model: str | AnyModel = "sam3d_tiny",
        *,
        weights: Path | None = None,
        adapter: Path | None = None,
        device: str = "auto",
        cache: EmbeddingCache | None = None,
        cache_bytes: int = CACHE_BYTES,
        framing: Framing | None = None,
        propagation: Propagation | None = None,
        refine: bool = True,
    ) -> None:
        if isinstance(model, str):
            model = load_model(model, device=choose_device(device)[0], weights=weights)
        if adapter is not None:
            Adapter.load(adapter, cast(nn.Module, model)).enable()
        self.model = model
        self.cache = EmbeddingCache(cache_bytes) if cache is None else cache
        self.framing = framing or Framing()
        self.propagation = propagation or Propagation()
        self.refine = refine
        self._engine: Engine | None = None
        self._states: BytesCache[PackedState] = BytesCache(_state_bytes(model))
        #: The alternatives that were computed last: key, states, and index of the shown one.
        self._offer: tuple[Hashable, list[PromptState], int] | None = None
        self._lock = RLock()

    @property
    def volume(self) -> Volume:
        """The volume to segment.

        Raises:
            PromptError: no volume was set.
        """
        return self._on_volume().volume

    @property
    def nbytes(self) -> int:
        """Memory of the cached masks in bytes, without the cache of embeddings."""
        return self._states.nbytes

    def forget(self) -> None:
        """Clear the cached masks; they are recomputed when needed."""
        self._states.clear()
        self._offer = None

    @property
    def learned(self) -> dict[int, str]:
        """Names of the label values that the adapter in use has learned; empty without an adapter."""
        adapter = adapter_in_use(cast(nn.Module, self.model))
        if adapter is None:
            return {}
        return {value: name_of(value, adapter.card) for value in adapter.prompts.labels}

    def _on_volume(self) -> Engine:
        if self._engine is None:
            raise PromptError("No volume is set; call set_volume with a volume before predicting.")
        return self._engine

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment and drop cached results of the previous one."""
        with self._lock:
            if isinstance(self.model, Sam3D):
                self._engine = WindowEngine(self.model, volume, self.cache, self.framing)
            else:
                self._engine = SliceEngine(self.model, volume, self.cache, self.propagation)
            self.forget()

    def predict(
        self,
        *,
        points: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: NDArray | None = None,
        label: int | None = None,
        alternative: int | None = None,
        refine: bool | None = None,
        progress: Progress | None = None,
    ) -> MaskPrediction:
        """Segment an object from arrays: the mask is applied first, then the boxes, then the points.

        Args:
            points: (N, 3) voxel indices (i, j, k).
            point_labels: (N,) 1 = inside, 0 = outside; all inside by default.
            boxes: (M, 2, 3) opposite corners in voxel indices, both included.
            mask_input: (i, j, k) mask to refine, on the volume's grid.
            label: value of a label that the adapter has learned; None for the object that the prompts mark.
            alternative: number of another mask for the first prompt, see `alternatives`; None for the mask
                with the highest predicted quality. Later prompts correct the chosen mask.
            refine: overrides the predictor's setting for this call.
            progress: called with a sentence and the fraction done.

        Raises:
            PromptError: an array has a wrong shape, a prompt lies outside the volume, no prompt locates
                the object, or there is no such alternative.
            AdapterError: no adapter that has learned the label is in use.
        """
        prompts: list[AnyPrompt] = [*prompts_from_arrays(points, point_labels, boxes, mask_input)]
        if alternative is not None:
            prompts = with_choice(prompts, alternative)
        return self.predict_prompts(prompts, label=label, refine=refine, progress=progress)

    def predict_prompts(
        self,
        prompts: Sequence[AnyPrompt],
        *,
        label: int | None = None,
        refine: bool | None = None,
        progress: Progress | None = None,
    ) -> MaskPrediction:
        """Segment an object from a sequence of prompts, in the order they were given.

        A mask prompt alone is returned unchanged; clicks correct it locally. A box bounds the mask with a
        tolerance of a tenth of the box's size. The mask honours every clicked voxel; the later of two
        contradicting clicks wins. Painted voxels are applied over the model's mask; see `paint_layer`.

        Args:
            prompts: points, scribbles, boxes, masks and painted voxels of one object.
            label, refine, progress: as in `predict`.

        Raises:
            PromptError, AdapterError: as in `predict`.
        """
        start_time = time.perf_counter()
        prompts = tuple(prompts)
        with self._lock, torch.inference_mode():
            engine = self._on_volume()
            grid = engine.volume.grid
            check_prompts(prompts, grid)
            model_prompts = prompts_for_model(prompts, grid.shape)
            first = first_step(model_prompts)
            encoded_before = engine.encoded
            end, state = len(model_prompts), None
            if label is not None:
                learned_prompt(cast(nn.Module, self.model), label)
            # Masks depend on the adapter and the label, so both are part of the key.
            key = (self.model.adapter_sha256, label)
            while end >= first and (state := self._state((*key, model_prompts[:end]))) is None:
                end -= 1
            for done in range(max(end + 1, first), len(model_prompts) + 1):
                if progress is not None and done < len(model_prompts):
                    progress(f"Prompt {done} of {len(model_prompts)}", done / len(model_prompts))
                user_prompts, newest = without_choices(model_prompts[:done]), model_prompts[done - 1]
                if isinstance(newest, Choice):
                    assert state is not None  # a choice follows the prompt that locates the object
                    state = self._chosen(engine, state, user_prompts, label, newest.number)
                else:
                    state = engine.step(state, user_prompts, progress, label)
                self._states.put((*key, model_prompts[:done]), PackedState(state))
            assert state is not None  # first <= len(model_prompts)
            patch, unmet = state.patch, state.unmet
            if self.refine if refine is None else refine:
                patch, unmet = engine.refined(state, without_choices(model_prompts), progress, label)
            if any(isinstance(prompt, Paint | Choice) for prompt in prompts):
                patch = Layer(prompts, grid.shape).over(patch)
                unmet = unmet_prompts(patch, prompts, grid.shape)
            score = self._expected_dice(state, without_choices(model_prompts))
            seconds = time.perf_counter() - start_time
            return state.prediction(
                grid, score, patch, unmet, encoded=engine.encoded - encoded_before, seconds=seconds
            )

    def _expected_dice(self, state: PromptState, prompts: Sequence[UserPrompt]) -> float:
        """Return the expected Dice of a state, or its predicted quality if the model is not calibrated."""
        calibration = CALIBRATIONS.get(self.model.model_id)
        if calibration is None or self.model.adapter_sha256 or isinstance(prompts[-1], MaskPrompt):
            return state.score
        box = any(isinstance(prompt, Box) for prompt in prompts)
        return calibration.expected(state.score, prompts=len(prompts), agreement=state.agreement, box=box)

    def alternatives(
        self, prompts: Sequence[AnyPrompt], *, label: int | None = None
    ) -> tuple[Alternative, ...]:
        """Return the masks that the first prompts of an object may mean, by size, at most four.

        They are the model's candidates in several windows, as far as they differ. Models that see slices have
        no alternatives: only the shown mask is returned.

        Args:
            prompts: prompts of one object. Those after the first that locates it are ignored.
            label: as in `predict_prompts`.

        Returns:
            The masks; empty if the first prompt is a mask or painted.

        Raises:
            PromptError, AdapterError: as in `predict`.
        """
        start_time = time.perf_counter()
        place = choice_place(prompts)
        if place is None:
            return ()
        prompts = tuple(prompts[:place])
        with self._lock, torch.inference_mode():
            self.predict_prompts(prompts, label=label, refine=False)
            engine = self._on_volume()
            grid, encoded_before = engine.volume.grid, engine.encoded
            model_prompts = prompts_for_model(prompts, grid.shape)
            state = self._state((self.model.adapter_sha256, label, model_prompts))
            assert state is not None  # it was cached last
            states, shown = self._offered(engine, state, without_choices(model_prompts), label)
            encoded = engine.encoded - encoded_before
            alternatives = []
            for number, one in enumerate(states, start=1):
                score = self._expected_dice(one, without_choices(model_prompts))
                seconds = time.perf_counter() - start_time
                found = one.prediction(grid, score, one.patch, one.unmet, encoded=encoded, seconds=seconds)
                alternatives.append(Alternative(number, found, number == shown + 1))
            return tuple(alternatives)

    def _offered(
        self, engine: Engine, state: PromptState, prompts: tuple[UserPrompt, ...], label: int | None
    ) -> tuple[list[PromptState], int]:
        """Return the alternatives to a state by size, and the index of the state."""
        key = (self.model.adapter_sha256, label, prompts)
        if self._offer is None or self._offer[0] != key:
            self._offer = (key, *distinct(state, engine.alternatives(state, prompts, label)))
        return self._offer[1:]

    def _chosen(
        self,
        engine: Engine,
        state: PromptState,
        prompts: tuple[UserPrompt, ...],
        label: int | None,
        number: int,
    ) -> PromptState:
        """Return the alternative of a number; raises `PromptError` if there is none."""
        states, _ = self._offered(engine, state, prompts, label)
        if number > len(states):
            count = "is only one mask" if len(states) == 1 else f"are {len(states)} masks, numbered by size"
            raise PromptError(
                f"There {count}, for the first prompt here, but mask {number} was asked for; choose another "
                "number, or leave the choice out."
            )
        return states[number - 1]

    def _state(self, key: Hashable) -> PromptState | None:
        packed = self._states.get(key)
        return None if packed is None else packed.state()

    def variants(self, prompts: Sequence[AnyPrompt], *, label: int | None = None) -> tuple[torch.Tensor, Roi]:
        """Return variants of the decode, to measure the model's uncertainty.

        Args:
            prompts, label: as in `predict_prompts`.

        Returns:
            (V, X, Y, Z) logits on a window, and the window.

        Raises:
            PromptError, AdapterError: as in `predict`; PromptError also if the last prompt is a mask, which
                is not decoded.
            SettingsError: the model is 2D and has no window.
        """
        with self._lock, torch.inference_mode():
            engine = self._on_volume()
            if not isinstance(engine, WindowEngine):
                raise SettingsError(
                    f"'{self.model.model_id}' sees slices and has no variants of a window; choose a 3D model."
                )
            model_prompts = prompts_for_model(prompts, engine.volume.grid.shape)
            if model_prompts and isinstance(model_prompts[-1], MaskPrompt):
                raise PromptError("A mask was given as it is and no model was asked about it; add a click.")
            key, first = (self.model.adapter_sha256, label), first_step(model_prompts)
            states: list[PromptState | None] = []
            for end in (len(model_prompts) - 1, len(model_prompts)):
                if end >= first:
                    self.predict_prompts(model_prompts[:end], label=label, refine=False)
                states.append(self._state((*key, model_prompts[:end])))
            before, state = states
            assert state is not None  # it was cached last
            if isinstance(model_prompts[-1], Choice):  # made from the first prompts alone
                before = None
            return engine.variants(before, state, without_choices(model_prompts), label), state.roi

    def predict_labels(
        self,
        *,
        labels: Iterable[int | str] | None = None,
        largest: bool = False,
        overlap: float = 0.5,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> LabelMap:
        """Segment labels that the adapter in use has learned in the whole volume, without prompts.

        Args:
            labels: values or names of the labels to segment; None for all.
            largest: whether to keep only the largest connected part of each label.
            overlap: fraction of a window that overlaps the next one, 0 <= overlap < 1.
            probabilities: whether to include the probability of each label.
            progress: called with a sentence and the fraction done.

        Raises:
            PromptError: no volume is set.
            AdapterError: no adapter is enabled, it has not learned the labels, or its card has no spacing.
            SettingsError: the overlap is out of range.
        """
        from medsam_app.predict.whole_volume import segment_labels  # importing MONAI takes seconds

        with self._lock:
            return segment_labels(
                cast(Sam3D, self.model),  # only 3D models can learn labels
                self._on_volume().volume,
                labels=labels,
                largest=largest,
                overlap=overlap,
                probabilities=probabilities,
                progress=progress,
            )


def _state_bytes(model: AnyModel) -> int:
    """Return the limit in bytes for cached prefixes; float32 logits of windows take nearly all of it."""
    if isinstance(model, Sam3D):
        return min(STATE_BYTES, STATES * 4 * math.prod(model.roi_shape))
    return STATE_BYTES
