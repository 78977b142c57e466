"""Work of one user on one volume: objects with prompts, and their masks.

The state of a session is a tuple of immutable objects, so undo and redo only select another state. Masks are
not part of the state: each mask is a pure function of the volume, the model and the prompts. The predictor
caches the results of earlier prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam_app.errors import PromptError
from medsam_app.models.identity import ModelIdentity
from medsam_app.progress import Progress
from medsam_app.prompts.types import Choice, MaskPrompt, Paint, can_choose
from medsam_app.session.actions import ObjectEditor
from medsam_app.session.objects import AnyPrompt, SegmentedObject
from medsam_app.session.prompt_file import (
    Replay,
    open_prompt_file,
    parse_prompt_file,
    replay_on,
    save_prompt_file,
)
from medsam_app.session.settings import Overlap, SessionSettings

if TYPE_CHECKING:  # these import torch, which a session does not need
    from medsam_app.io.volume import Volume
    from medsam_app.predict.core.prediction import Alternative, MaskPrediction
    from medsam_app.predict.predictor import VolumePredictor
    from medsam_app.predict.uncertainty import Doubt

#: Prompts, whether to refine, label and adapter hash: everything that a mask depends on.
_MaskKey = tuple[tuple[AnyPrompt, ...], bool, int | None, str]


class Session(ObjectEditor):
    """Objects of one volume and their masks. Safe to call from several threads.

    Args:
        volume: volume to segment.
        predictor: predicts the masks; without one, prompts can be edited and saved, but there are no masks.
        overlap: which object owns a voxel of two masks in the label map; see `SessionSettings`.
        refine: whether the outlines of large objects are refined in tiles; by default as in the predictor.

    Attributes:
        settings: further settings that affect the masks; replaced as a whole, and not part of the history.

    Raises:
        SettingsError: `overlap` is unknown.
    """

    def __init__(
        self,
        volume: Volume,
        predictor: VolumePredictor | None = None,
        *,
        overlap: Overlap = "later",
        refine: bool | None = None,
    ) -> None:
        if refine is None:
            refine = predictor.refine if predictor is not None else True
        super().__init__(volume.grid)
        self.settings = SessionSettings(overlap=overlap, refine=refine, by_label=False)
        self.volume = volume
        self.predictor = predictor
        if predictor is not None:
            predictor.set_volume(volume)
        #: By object id: mask key and mask, before other objects are subtracted.
        self._predictions: dict[str, tuple[_MaskKey, MaskPrediction]] = {}
        #: Number of masks that are offered for first prompts.
        self._offers: dict[Hashable, int] = {}
        #: By object id: its mask, the masks of objects with priority, and the difference.
        self._differences: dict[str, tuple[MaskPrediction, list[MaskPrediction], MaskPrediction]] = {}

    def prediction(self, object_id: str, *, progress: Progress | None = None) -> MaskPrediction | None:
        """Return the mask of an object, without voxels of objects that it may not overlap.

        Args:
            object_id: the object.
            progress: called with a sentence and the fraction done.

        Returns:
            The mask, or None if no prompt locates the object.

        Raises:
            PromptError: there is no such object, or the session has no predictor.
        """
        prediction = self._predict(object_id, progress)
        if prediction is None:
            return None
        predictions = [self._predict(item.id, progress) for item in self._objects_with_priority(object_id)]
        masks = [mask for mask in predictions if mask is not None]
        if not masks:
            return prediction
        cached = self._differences.get(object_id)
        if cached is None or cached[0] is not prediction or cached[1] != masks:
            cached = (prediction, masks, without(prediction, masks, self.get(object_id).prompts))
            self._differences[object_id] = cached
        return cached[2]

    def subtracted_voxels(self, object_id: str) -> int:
        """Return the number of voxels that an object loses to objects that it may not overlap."""
        before, after = self._predict(object_id, None), self.prediction(object_id)
        return 0 if before is None or after is None else before.voxels - after.voxels

    def mask_key(self, object_id: str) -> Hashable:
        """Return a key of an object's mask: equal keys mean equal masks."""
        objects, settings = [self.get(object_id), *self._objects_with_priority(object_id)], self.settings
        return tuple((item.prompts, settings.refine, settings.by_label and item.label) for item in objects)

    def _objects_with_priority(self, object_id: str) -> list[SegmentedObject]:
        """Return the objects whose masks are subtracted from an object's mask.

        See `SegmentedObject.may_overlap`.
        """
        objects, target = self.objects, self.get(object_id)
        index = objects.index(target)
        priority = objects[index + 1 :] if self.settings.overlap == "later" else objects[:index]
        return [] if target.may_overlap else [item for item in priority if not item.may_overlap]

    def _predict(self, object_id: str, progress: Progress | None) -> MaskPrediction | None:
        """Return the mask of an object's prompts, from the cache if possible."""
        with self._lock:
            target, refine = self.get(object_id), self.settings.refine
            cached = self._predictions.get(object_id)
        adapter = self.predictor.model.adapter_sha256 if self.predictor is not None else ""
        if not target.has_start:
            return None
        label = self._learned_label(target)
        key = (target.prompts, refine, label, adapter)
        if cached is not None and cached[0] == key:
            return cached[1]
        if self.predictor is None:
            raise PromptError("This session has no model to make masks with; give it a predictor.")
        # Outside the lock, so that readers of the objects do not wait for the model.
        prediction = self.predictor.predict_prompts(
            target.prompts, label=label, refine=refine, progress=progress
        )
        with self._lock:
            self._predictions[object_id] = (key, prediction)
            for deleted in self._predictions.keys() - {item.id for item in self.objects}:
                del self._predictions[deleted]  # predicted again if undo restores the object
        return prediction

    def doubt(self, object_id: str) -> Doubt | None:
        """Return the uncertainty of an object's mask, or None if no prompt locates the object.

        Raises:
            PromptError, SettingsError: see `prediction` and `VolumePredictor.variants`.
        """
        from medsam_app.predict.core.paint_layer import Layer
        from medsam_app.predict.uncertainty import doubt_of  # torch

        prediction, target = self.prediction(object_id), self.get(object_id)
        if prediction is None or self.predictor is None:
            return None
        variants, roi = self.predictor.variants(target.prompts, label=self._learned_label(target))
        grid, painted = self.volume.grid, None
        if any(isinstance(prompt, Paint) for prompt in target.prompts):
            painted = Layer(target.prompts, grid.shape).painted
        return doubt_of(variants, roi, prediction.patch, grid, settled=painted)

    def alternatives(self, object_id: str) -> tuple[Alternative, ...]:
        """Return the masks among which `choose` chooses for an object, by size.

        Empty without a predictor, and if the object has no prompt or more prompts than the first that locates
        it.

        Raises:
            PromptError: there is no such object.
        """
        target = self.get(object_id)
        if self.predictor is None or not can_choose(target.prompts):
            return ()
        masks = self.predictor.alternatives(target.prompts, label=self._learned_label(target))
        first_prompts = tuple(p for p in target.prompts if not isinstance(p, Choice))
        self._offers[self._offer_key(target, first_prompts)] = len(masks)
        return masks

    def _offer_key(self, target: SegmentedObject, first_prompts: tuple[AnyPrompt, ...]) -> Hashable:
        adapter = "" if self.predictor is None else self.predictor.model.adapter_sha256
        return first_prompts, self._learned_label(target), adapter

    @property
    def offers_quickly(self) -> bool:
        """Whether `alternatives` takes about as long as a first click: not with a model that is slow."""
        return self.predictor is not None and getattr(self.predictor.model, "encodings", 1) > 1

    def choice(self, object_id: str) -> tuple[int, int | None] | None:
        """Return the number of the chosen mask of an object and the number of masks, if known; or None."""
        target = self.get(object_id)
        for number, prompt in enumerate(target.prompts):
            if isinstance(prompt, Choice):
                return prompt.number, self._offers.get(self._offer_key(target, target.prompts[:number]))
        return None

    def choose_next(self, object_id: str, step: int) -> SegmentedObject:
        """Choose the next larger mask for the first prompt of an object, or the next smaller one.

        Args:
            object_id: the object.
            step: 1 for larger, -1 for smaller; after the largest comes the smallest.

        Raises:
            PromptError: see `choose`; also if there is only one mask.
        """
        masks = self.alternatives(object_id)
        if not masks:
            return self.choose(object_id, 1)  # the error says why there are none
        if len(masks) == 1:
            raise PromptError("The model offers no other mask for this prompt; add a click or a box.")
        chosen = [prompt.number for prompt in self.get(object_id).prompts if isinstance(prompt, Choice)]
        current = chosen[0] if chosen else next(mask.number for mask in masks if mask.shown)
        return self.choose(object_id, (current - 1 + step) % len(masks) + 1)

    @property
    def nbytes(self) -> int:
        """Memory of the masks, the painted voxels and the predictor's cache in bytes, without the volume."""
        with self._lock:
            masks = sum(mask.nbytes for _, mask in self._predictions.values())
            painted = sum(_packed(prompt) for item in self.objects for prompt in item.prompts)
        return masks + painted + (0 if self.predictor is None else self.predictor.nbytes)

    def _learned_label(self, target: SegmentedObject) -> int | None:
        """Return the label value to segment an object as, or None for any object."""
        if not self.settings.by_label or self.predictor is None:
            return None
        return target.label if target.label in self.predictor.learned else None

    def label_map(self, *, progress: Progress | None = None) -> NDArray[np.unsignedinteger]:
        """Return the (i, j, k) label map of all objects, in the smallest unsigned type that holds the labels.

        0 is the background. `settings.overlap` decides the label of voxels of two objects.
        """
        objects = self.objects
        largest = max((item.label for item in objects), default=0)
        out = np.zeros(self.volume.grid.shape, dtype=np.min_scalar_type(largest))
        for item in objects if self.settings.overlap == "later" else reversed(objects):
            prediction = self.prediction(item.id, progress=progress)
            if prediction is not None:
                out[prediction.patch.slices][prediction.patch.mask] = item.label
        return out

    @property
    def label_names(self) -> dict[int, str]:
        """Name of each label value."""
        return {item.label: item.name for item in self.objects}

    def overlaps(self) -> list[tuple[SegmentedObject, SegmentedObject, int]]:
        """Return pairs of overlapping objects, earlier object first, and the number of shared voxels."""
        pairs = []
        for first, second in combinations(self.objects, 2):
            shared = _shared_voxels(self.prediction(first.id), self.prediction(second.id))
            if shared:
                pairs.append((first, second, shared))
        return pairs

    @property
    def identity(self) -> ModelIdentity | None:
        """Identity of the model that predicts the masks; None without a predictor."""
        return None if self.predictor is None else ModelIdentity.of(self.predictor.model)

    def save_prompts(self, path: str | Path) -> Path:
        """Write the prompt file; see `save_prompt_file`."""
        return save_prompt_file(self, path)

    def read_prompts(self, path: str | Path, *, other_image: bool = False) -> Replay:
        """Read a prompt file for this image and this model, without changing the session.

        See `load_prompts`.
        """
        return open_prompt_file(path, self.volume, identity=self.identity, other_image=other_image)

    def parse_prompts(self, text: str | bytes, *, title: str, name: str) -> Replay:
        """Parse the text of a prompt file for this image and this model, without changing the session.

        Args:
            text: text in UTF-8.
            title: title of the text in error messages.
            name: name of the text in notes.

        Raises:
            PromptFileError: the text is invalid or does not belong to this image.
        """
        file = parse_prompt_file(text, title=title)
        return replay_on(file, self.volume, title=title, name=name, identity=self.identity)

    def load_prompts(self, path: str | Path, *, other_image: bool = False) -> list[str]:
        """Replace all objects by those of a prompt file, as one step of the history.

        Args:
            path: prompt file.
            other_image: accept a file for another image on the same grid.

        Returns:
            Sentences for the user: why the masks may differ from the original masks.

        Raises:
            PromptFileError: the file cannot be read or does not belong to this image.
        """
        replay = self.read_prompts(path, other_image=other_image)
        self.replay(replay, change=f"open {Path(path).name}")
        return list(replay.notes)

    def replay(self, replay: Replay, *, change: str) -> None:
        """Replace all objects and settings by those of a prompt file.

        Args:
            replay: result of `read_prompts`.
            change: description of the change, for undo.
        """
        with self._lock:
            self.replace_objects(replay.objects, change=change)
            self.settings = replay.settings


def _packed(prompt: AnyPrompt) -> int:
    """Return the number of bytes of the voxels that a prompt holds."""
    if isinstance(prompt, Paint):
        return sum(len(bits.packed) for bits, _ in prompt.parts)
    return len(prompt.packed) if isinstance(prompt, MaskPrompt) else 0


def _shared_voxels(a: MaskPrediction | None, b: MaskPrediction | None) -> int:
    return 0 if a is None or b is None else a.voxels - without(a, [b], ()).voxels


def without(
    mask: MaskPrediction, subtracted: Sequence[MaskPrediction], prompts: Sequence[AnyPrompt]
) -> MaskPrediction:
    """Return a mask without the voxels of other masks.

    Args:
        mask: the mask.
        subtracted: masks to subtract.
        prompts: prompts of the object, to find those that the result does not meet.
    """
    from medsam_app.predict.core.constraints import unmet_prompts  # torch

    patch = mask.patch.without(*(item.patch for item in subtracted))
    unmet = unmet_prompts(patch, prompts, mask.grid.shape) if len(prompts) else ()
    return replace(mask, patch=patch, unmet=unmet)
