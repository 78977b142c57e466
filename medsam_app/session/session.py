"""One person's work on one volume: objects with prompts, and the masks they make.

A session's state is a tuple of immutable objects, so undo and redo only go back and forth among states.
Masks are no part of the state: each is a pure function of the volume, the model and the prompts,
and the predictor remembers what the prompts before gave.
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
from medsam_app.prompts.types import MaskPrompt, Paint
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
    from medsam_app.predict.core.prediction import MaskPrediction
    from medsam_app.predict.predictor import VolumePredictor
    from medsam_app.predict.uncertainty import Doubt

#: Prompts, whether refined, label and adapter: everything a mask depends on.
_Asked = tuple[tuple[AnyPrompt, ...], bool, int | None, str]


class Session(ObjectEditor):
    """Objects of one volume and their masks. Safe to call from several threads.

    Args:
        volume: what is segmented.
        predictor: makes the masks; without one, prompts can be edited and saved but not run.
        overlap: which object owns a voxel of two masks in the label map; see `SessionSettings`.
        refine: whether outlines of large objects are drawn in tiles; by default as the predictor does.

    Attributes:
        settings: what else decides the masks; replaced as a whole, and not part of the history.

    Raises:
        SettingsError: an unknown `overlap`.
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
        #: By object: the prompts, whether refined, the label and the adapter, and what they gave.
        self._predictions: dict[str, tuple[_Asked, MaskPrediction]] = {}
        #: By object: its own mask, the masks of objects with priority, and the remainder.
        self._apart: dict[str, tuple[MaskPrediction, list[MaskPrediction], MaskPrediction]] = {}

    def prediction(self, object_id: str, *, progress: Progress | None = None) -> MaskPrediction | None:
        """The mask of an object: of its prompts, and without what belongs to others that it may not overlap.

        Returns:
            None while nothing says where it is.

        Raises:
            PromptError: no such object, or the session has no predictor.
        """
        own = self._own(object_id, progress)
        if own is None:
            return None
        others = [self._own(each.id, progress) for each in self._gives_way_to(object_id)]
        masks = [mask for mask in others if mask is not None]
        if not masks:
            return own
        known = self._apart.get(object_id)
        if known is None or known[0] is not own or known[1] != masks:
            known = (own, masks, without(own, masks, self.get(object_id).prompts))
            self._apart[object_id] = known
        return known[2]

    def given_up(self, object_id: str) -> int:
        """Voxels that an object leaves to others that it may not overlap."""
        own, left = self._own(object_id, None), self.prediction(object_id)
        return 0 if own is None or left is None else own.voxels - left.voxels

    def made_of(self, object_id: str) -> Hashable:
        """Equal where an object's mask is the same."""
        objects, settings = [self.get(object_id), *self._gives_way_to(object_id)], self.settings
        return tuple((each.prompts, settings.refine, settings.by_label and each.label) for each in objects)

    def _gives_way_to(self, object_id: str) -> list[SegmentedObject]:
        """The objects whose voxels are not this object's; see `SegmentedObject.may_overlap`."""
        objects, asked = self.objects, self.get(object_id)
        at = objects.index(asked)
        stronger = objects[at + 1 :] if self.settings.overlap == "later" else objects[:at]
        return [] if asked.may_overlap else [each for each in stronger if not each.may_overlap]

    def _own(self, object_id: str, progress: Progress | None) -> MaskPrediction | None:
        with self._lock:
            asked, refine = self.get(object_id), self.settings.refine
            known = self._predictions.get(object_id)
        adapter = self.predictor.model.adapter_sha256 if self.predictor is not None else ""
        if not asked.has_start:
            return None
        label = self._learned_label(asked)
        wanted = (asked.prompts, refine, label, adapter)
        if known is not None and known[0] == wanted:
            return known[1]
        if self.predictor is None:
            raise PromptError("This session has no model to make masks with; give it a predictor.")
        # Outside the lock: readers of the objects do not wait for the model.
        made = self.predictor.predict_prompts(asked.prompts, label=label, refine=refine, progress=progress)
        with self._lock:
            self._predictions[object_id] = (wanted, made)
            for gone in self._predictions.keys() - {each.id for each in self.objects}:
                del self._predictions[gone]  # made again where it comes back
        return made

    def doubt(self, object_id: str) -> Doubt | None:
        """Return the uncertainty of an object's mask; None without a prompt that locates it.

        Raises:
            PromptError, SettingsError: as `prediction` and `VolumePredictor.variants`.
        """
        from medsam_app.predict.core.paint_layer import Layer
        from medsam_app.predict.uncertainty import doubt_of  # torch

        made, asked = self.prediction(object_id), self.get(object_id)
        if made is None or self.predictor is None:
            return None
        variants, roi = self.predictor.variants(asked.prompts, label=self._learned_label(asked))
        grid, painted = self.volume.grid, None
        if any(isinstance(prompt, Paint) for prompt in asked.prompts):
            painted = Layer(asked.prompts, grid.shape).painted
        return doubt_of(variants, roi, made.patch, grid, settled=painted)

    @property
    def nbytes(self) -> int:
        """Memory of masks, painted voxels and what the predictor remembers, in bytes; not the volume's."""
        with self._lock:
            masks = sum(made.nbytes for _, made in self._predictions.values())
            drawn = sum(_packed(prompt) for each in self.objects for prompt in each.prompts)
        return masks + drawn + (0 if self.predictor is None else self.predictor.nbytes)

    def _learned_label(self, asked: SegmentedObject) -> int | None:
        """The label that an object is looked for as, None for anything."""
        if not self.settings.by_label or self.predictor is None:
            return None
        return asked.label if asked.label in self.predictor.learned else None

    def label_map(self, *, progress: Progress | None = None) -> NDArray[np.unsignedinteger]:
        """Return the (i, j, k) label values of all objects, 0 elsewhere.

        See `settings.overlap` for voxels of two objects.

        Of the smallest unsigned type that holds the labels.
        """
        objects = self.objects
        most = max((each.label for each in objects), default=0)
        out = np.zeros(self.volume.grid.shape, dtype=np.min_scalar_type(most))
        for each in objects if self.settings.overlap == "later" else reversed(objects):
            made = self.prediction(each.id, progress=progress)
            if made is not None:
                out[made.patch.slices][made.patch.mask] = each.label
        return out

    @property
    def label_names(self) -> dict[int, str]:
        """Name of each label value."""
        return {each.label: each.name for each in self.objects}

    def overlaps(self) -> list[tuple[SegmentedObject, SegmentedObject, int]]:
        """Pairs of objects whose masks share voxels, and how many; the earlier object comes first."""
        found = []
        for first, second in combinations(self.objects, 2):
            shared = _shared_voxels(self.prediction(first.id), self.prediction(second.id))
            if shared:
                found.append((first, second, shared))
        return found

    @property
    def identity(self) -> ModelIdentity | None:
        """Identity of the model that makes the masks; None without a predictor."""
        return None if self.predictor is None else ModelIdentity.of(self.predictor.model)

    def save_prompts(self, path: str | Path) -> Path:
        """Write the prompt file; see `save_prompt_file`."""
        return save_prompt_file(self, path)

    def read_prompts(self, path: str | Path, *, other_image: bool = False) -> Replay:
        """Read a prompt file for this image and this model; see `load_prompts`. Changes nothing."""
        return open_prompt_file(path, self.volume, identity=self.identity, other_image=other_image)

    def parse_prompts(self, text: str | bytes, *, title: str, name: str) -> Replay:
        """Read the text of a prompt file for this image and this model. Changes nothing.

        Args:
            text: UTF-8.
            title: of the text in error messages.
            name: of the text in notes.

        Raises:
            PromptFileError: it cannot be read or does not belong to this image.
        """
        file = parse_prompt_file(text, title=title)
        return replay_on(file, self.volume, title=title, name=name, identity=self.identity)

    def load_prompts(self, path: str | Path, *, other_image: bool = False) -> list[str]:
        """Put the objects of a prompt file in the place of all, as one step of the history.

        Args:
            path: the prompt file.
            other_image: accept a file that was made on another image of the same grid.

        Returns:
            Sentences for the user: why masks may differ from those of the time of writing.

        Raises:
            PromptFileError: the file cannot be read or does not belong to this image.
        """
        replay = self.read_prompts(path, other_image=other_image)
        self.replay(replay, change=f"open {Path(path).name}")
        return list(replay.notes)

    def replay(self, replay: Replay, *, change: str) -> None:
        """Put the objects and settings of a prompt file in the place of all.

        Args:
            replay: as `read_prompts` returns it.
            change: in words, for undo.
        """
        with self._lock:
            self.replace_objects(replay.objects, change=change)
            self.settings = replay.settings


def _packed(prompt: AnyPrompt) -> int:
    """Bytes of the voxels that a prompt holds."""
    if isinstance(prompt, Paint):
        return sum(len(bits.packed) for bits, _ in prompt.parts)
    return len(prompt.packed) if isinstance(prompt, MaskPrompt) else 0


def _shared_voxels(a: MaskPrediction | None, b: MaskPrediction | None) -> int:
    return 0 if a is None or b is None else a.voxels - without(a, [b], ()).voxels


def without(
    own: MaskPrediction, others: Sequence[MaskPrediction], prompts: Sequence[AnyPrompt]
) -> MaskPrediction:
    """A mask without the voxels of others; the prompts say which are unmet then."""
    from medsam_app.predict.core.constraints import unmet_prompts  # torch

    patch = own.patch.without(*(other.patch for other in others))
    unmet = unmet_prompts(patch, prompts, own.grid.shape) if len(prompts) else ()
    return replace(own, patch=patch, unmet=unmet)
