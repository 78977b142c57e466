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
from medsam_app.models.sam2d import SliceSegmenter
from medsam_app.models.sam3d import Sam3D
from medsam_app.predict.core.constraints import unmet_prompts
from medsam_app.predict.core.engine import Engine, first_step
from medsam_app.predict.core.feature_cache import BytesCache, EmbeddingCache
from medsam_app.predict.core.paint_layer import Layer, asked_of_model
from medsam_app.predict.core.prediction import LabelMap, MaskPrediction, PackedState, PromptState
from medsam_app.predict.slicewise.engine import SliceEngine
from medsam_app.predict.slicewise.propagation import Propagation
from medsam_app.predict.windowed.engine import WindowEngine
from medsam_app.predict.windowed.window_choice import Framing
from medsam_app.progress import Progress
from medsam_app.prompts.types import (
    AnyPrompt,
    MaskPrompt,
    Paint,
    check_prompts,
    prompts_from_arrays,
)

AnyModel = Sam3D | SliceSegmenter
#: Memory for embeddings.
CACHE_BYTES = 512 << 20
#: How many prefixes of prompts are remembered of a window as large as the model's, and most memory for them.
STATES, STATE_BYTES = 64, 256 << 20


class VolumePredictor:
    """Segments objects of one volume at a time from prompts.

    Safe to call from several threads: calls on one predictor wait for each other. Predictors may
    share a model and a cache.

    Args:
        model: name of a model, or one that is loaded.
        weights: a checkpoint to use instead of a named model's published one.
        adapter: file of an adapter that is put on the model and switched on.
        device: 'auto', 'cpu', 'cuda', ...; where a named model runs.
        cache: embeddings shared with other predictors; by default an own one.
        cache_bytes: size of the own cache.
        framing: how a 3D model's window is chosen.
        propagation: how a 2D model's mask goes from slice to slice.
        refine: whether the outline of an object that is large for one window is drawn again in tiles of
            finer spacing, unless a call says otherwise. It takes a few seconds an object and call, and
            is nothing to a 2D model.
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
        self._lock = RLock()

    @property
    def volume(self) -> Volume:
        """The volume that is segmented.

        Raises:
            PromptError: none was set.
        """
        return self._on_volume().volume

    @property
    def nbytes(self) -> int:
        """Memory that remembered masks hold, in bytes; the cache of embeddings counts its own."""
        return self._states.nbytes

    def forget(self) -> None:
        """Release what is cached: it is made again when it is needed, which takes time."""
        self._states.clear()

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
        """Set the volume; cached results of the previous one are dropped."""
        with self._lock:
            if isinstance(self.model, Sam3D):
                self._engine = WindowEngine(self.model, volume, self.cache, self.framing)
            else:
                self._engine = SliceEngine(self.model, volume, self.cache, self.propagation)
            self._states.clear()

    def predict(
        self,
        *,
        points: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: NDArray | None = None,
        label: int | None = None,
        refine: bool | None = None,
        progress: Progress | None = None,
    ) -> MaskPrediction:
        """Segment from arrays. The mask comes first, then the boxes, then the points.

        Args:
            points: (N, 3) voxel indices (i, j, k).
            point_labels: (N,) 1 = inside, 0 = outside; all inside by default.
            boxes: (M, 2, 3) opposite corners in voxel indices, both included.
            mask_input: (i, j, k) mask to refine, on the volume's grid.
            label: which of the labels that the adapter has learned is meant; None leaves it to the prompts.
            refine: as for the predictor, for this call.
            progress: called with a sentence and a fraction done.

        Raises:
            PromptError: arrays of a wrong shape, prompts outside the volume, or nothing to start from.
            AdapterError: no adapter that has learned the label is in use.
        """
        prompts = prompts_from_arrays(points, point_labels, boxes, mask_input)
        return self.predict_prompts(prompts, label=label, refine=refine, progress=progress)

    def predict_prompts(
        self,
        prompts: Sequence[AnyPrompt],
        *,
        label: int | None = None,
        refine: bool | None = None,
        progress: Progress | None = None,
    ) -> MaskPrediction:
        """Segment from a sequence of prompts, in the order they were given.

        A mask alone comes back as it is, and clicks correct it where they fall; a box bounds the mask up to a
        tenth of its size; clicks are honoured voxel by voxel, and where two contradict each other the
        later one. What was painted is laid over what the model makes of the rest; see `touch_up`.

        Args:
            prompts: points, boxes, masks and paint of one object.
            label, refine, progress: as for `predict`.

        Raises:
            PromptError, AdapterError: as for `predict`.
        """
        began = time.perf_counter()
        prompts = tuple(prompts)
        with self._lock, torch.inference_mode():
            engine = self._on_volume()
            grid = engine.volume.grid
            check_prompts(prompts, grid)
            asked = asked_of_model(prompts, grid.shape)
            first = first_step(asked)
            encoded_before = engine.encoded
            end, state = len(asked), None
            if label is not None:
                learned_prompt(cast(nn.Module, self.model), label)
            # An adapter that is switched makes other masks, and so does another label.
            own = (self.model.adapter_sha256, label)
            while end >= first and (state := self._state((*own, asked[:end]))) is None:
                end -= 1
            for done in range(max(end + 1, first), len(asked) + 1):
                if progress is not None and done < len(asked):
                    progress(f"Prompt {done} of {len(asked)}", done / len(asked))
                state = engine.step(state, asked[:done], progress, label)
                self._states.put((*own, asked[:done]), PackedState(state))
            assert state is not None  # first <= len(asked)
            patch, unmet = state.patch, state.unmet
            if self.refine if refine is None else refine:
                patch, unmet = engine.refined(state, asked, progress, label)
            if any(isinstance(prompt, Paint) for prompt in prompts):
                patch = Layer(prompts, grid.shape).over(patch)
                unmet = unmet_prompts(patch, prompts, grid.shape)
            return MaskPrediction(
                grid=grid,
                patch=patch,
                score=state.score,
                unmet=unmet,
                changed_box=state.changed,
                roi=state.roi,
                logits=state.logits,
                encoded=engine.encoded - encoded_before,
                seconds=time.perf_counter() - began,
            )

    def _state(self, key: Hashable) -> PromptState | None:
        kept = self._states.get(key)
        return None if kept is None else kept.state()

    def variants(self, prompts: Sequence[AnyPrompt], *, label: int | None = None) -> tuple[torch.Tensor, Roi]:
        """Return variants of the decode, to measure the model's uncertainty.

        Args:
            prompts, label: as for `predict_prompts`.

        Returns:
            (V, X, Y, Z) logits on a window, and the window.

        Raises:
            PromptError, AdapterError: as for `predict`; PromptError also for a mask without corrections,
                for which no model is needed.
            SettingsError: the model sees slices and not windows.
        """
        with self._lock, torch.inference_mode():
            engine = self._on_volume()
            if not isinstance(engine, WindowEngine):
                raise SettingsError(
                    f"'{self.model.model_id}' sees slices and has no variants of a window; choose a 3D model."
                )
            asked = asked_of_model(prompts, engine.volume.grid.shape)
            if asked and isinstance(asked[-1], MaskPrompt):
                raise PromptError("A mask was given as it is and no model was asked about it; add a click.")
            own, first = (self.model.adapter_sha256, label), first_step(asked)
            states: list[PromptState | None] = []
            for end in (len(asked) - 1, len(asked)):
                if end >= first:
                    self.predict_prompts(asked[:end], label=label, refine=False)
                states.append(self._state((*own, asked[:end])))
            before, state = states
            assert state is not None  # the newest in the cache
            return engine.variants(before, state, asked, label), state.roi

    def predict_labels(
        self,
        *,
        labels: Iterable[int | str] | None = None,
        largest: bool = False,
        overlap: float = 0.5,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> LabelMap:
        """Segment the whole volume without a prompt: all labels that the adapter in use has learned.

        Args:
            labels: values or names of the labels that are looked for; None for all.
            largest: whether of each label only the largest connected part is kept.
            overlap: how much of a window the next one shows again, from 0 to below 1.
            probabilities: whether each label's own are given too.
            progress: called with a sentence and a fraction done.

        Raises:
            PromptError: no volume is set.
            AdapterError: no adapter is on, it has not learned the labels, or its card names no spacing.
            SettingsError: an overlap out of its range.
        """
        from medsam_app.predict.whole_volume import segment_labels  # imports MONAI, seconds

        with self._lock:
            return segment_labels(
                cast(Sam3D, self.model),  # no other model has learned labels
                self._on_volume().volume,
                labels=labels,
                largest=largest,
                overlap=overlap,
                probabilities=probabilities,
                progress=progress,
            )


def _state_bytes(model: AnyModel) -> int:
    """Memory limit for cached prefixes; nearly all of it is float32 logits of windows."""
    if isinstance(model, Sam3D):
        return min(STATE_BYTES, STATES * 4 * math.prod(model.roi_shape))
    return STATE_BYTES
