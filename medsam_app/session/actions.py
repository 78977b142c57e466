"""The objects of a volume, changed in any way and back again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from medsam_app.prompts.types import Paint, check_prompts
from medsam_app.session.history import History, now
from medsam_app.session.label_set import Label, next_label
from medsam_app.session.object_history import ObjectHistory
from medsam_app.session.objects import (
    LARGEST_LABEL,
    AnyPrompt,
    SegmentedObject,
    checked_colour,
    checked_index,
    checked_label,
    checked_name,
    next_colour,
    prompt_words,
)


class ObjectEditor(ObjectHistory):
    """Objects on a grid, with unlimited undo and redo.

    Safe to call from several threads. A call that raises has changed nothing.

    Args:
        grid: prompts must lie on it.

    Attributes:
        labels: a label set; an object of which nothing is said is the next of it that there is not yet.
    """

    labels: tuple[Label, ...] = ()

    # Changing objects

    def add_object(
        self,
        name: str | None = None,
        *,
        label: int | None = None,
        colour: str | None = None,
        may_overlap: bool = True,
    ) -> SegmentedObject:
        """Add an object and select it.

        Args:
            name: by default that of the label set, or 'object 1', 'object 2', ...
            label: by default that of the label set, or the smallest free value.
            colour: '#rrggbb', by default that of the label set, or the next of a palette that colour-blind
                people can distinguish.
            may_overlap: whether it may share voxels with others that may not; see `SegmentedObject`.

        Raises:
            SettingsError: a name or a label that another object has, or that is no name, label or colour.
        """
        with self._lock:
            others = self.objects
            if name is None and label is None and (known := next_label(self.labels, others)) is not None:
                name, label = known.name, known.label
                colour, may_overlap = colour or known.colour, known.may_overlap
            if label is None:
                taken = {each.label for each in others}
                label = next(value for value in range(1, LARGEST_LABEL + 2) if value not in taken)
            if name is None:
                names = {each.name for each in others}
                number = len(others) + 1
                while f"object {number}" in names:
                    number += 1
                name = f"object {number}"
            name, label = checked_name(name, others), checked_label(label, others)
            colour = (
                next_colour([each.colour for each in others]) if colour is None else checked_colour(colour)
            )
            self._last_id += 1
            added = SegmentedObject(
                id=f"o{self._last_id}", name=name, label=label, colour=colour, may_overlap=may_overlap
            )
            self._history.push((*others, added), f"add {name}")
            self._selected = added.id
            return added

    def rename(self, object_id: str, name: str) -> SegmentedObject:
        """Give an object another name. Raises as `add_object`."""
        with self._changing(object_id) as (old, others):
            return self._swap(replace(old, name=checked_name(name, others)), f"rename {old.name}")

    def set_label(self, object_id: str, label: int) -> SegmentedObject:
        """Give an object another label value. Raises as `add_object`."""
        with self._changing(object_id) as (old, others):
            return self._swap(replace(old, label=checked_label(label, others)), f"change label of {old.name}")

    def set_colour(self, object_id: str, colour: str) -> SegmentedObject:
        """Give an object another colour. Raises as `add_object`."""
        with self._changing(object_id) as (old, _):
            return self._swap(replace(old, colour=checked_colour(colour)), f"change colour of {old.name}")

    def set_may_overlap(self, object_id: str, may: bool) -> SegmentedObject:
        """Say whether an object may share voxels with others."""
        with self._changing(object_id) as (old, _):
            words = "let" if may else "do not let"
            return self._swap(replace(old, may_overlap=may), f"{words} {old.name} overlap")

    def delete_object(self, object_id: str) -> None:
        """Delete an object and its prompts; the one before it is selected."""
        with self._changing(object_id) as (old, others):
            at = self._index(object_id)
            self._history.push(others, f"delete {old.name}")
            if self._selected == object_id:
                self._selected = others[max(at - 1, 0)].id if others else None

    # Changing prompts

    def add_prompt(self, object_id: str, prompt: AnyPrompt) -> SegmentedObject:
        """Append a prompt.

        Raises:
            PromptError: it does not lie on the volume.
        """
        with self._changing(object_id) as (old, _):
            prompts = (*old.prompts, prompt)
            check_prompts(prompts, self.grid)
            self._refuse_locked(old.prompts, prompt)
            changed = replace(old, prompts=prompts, times=(*old.times, now()))
            words = prompt_words(prompt)
            painted = isinstance(prompt, Paint)
            change = f"{words} on {old.name}" if painted else f"add {words} to {old.name}"
            return self._swap(changed, change)

    def replace_prompt(self, object_id: str, index: int, prompt: AnyPrompt) -> SegmentedObject:
        """Put another prompt in the place of one, as when a click is moved. Raises as `add_prompt`."""
        with self._changing(object_id) as (old, _):
            at = checked_index(old, index)
            prompts = (*old.prompts[:at], prompt, *old.prompts[at + 1 :])
            check_prompts(prompts, self.grid)
            self._refuse_locked((*old.prompts[:at], *old.prompts[at + 1 :]), prompt)
            times = (*old.times[:at], now(), *old.times[at + 1 :])
            return self._swap(
                replace(old, prompts=prompts, times=times), f"move {prompt_words(prompt)} of {old.name}"
            )

    def delete_prompt(self, object_id: str, index: int) -> SegmentedObject:
        """Delete one prompt.

        Raises:
            PromptError: there is no prompt of that index.
        """
        with self._changing(object_id) as (old, _):
            at = checked_index(old, index)
            prompts = (*old.prompts[:at], *old.prompts[at + 1 :])
            times = (*old.times[:at], *old.times[at + 1 :])
            changed = replace(old, prompts=prompts, times=times)
            return self._swap(changed, f"delete {prompt_words(old.prompts[at])} of {old.name}")

    def clear(self, object_id: str) -> SegmentedObject:
        """Delete all prompts of an object."""
        with self._changing(object_id) as (old, _):
            return self._swap(replace(old, prompts=(), times=()), f"clear {old.name}")

    def absorb(self, object_id: str, other_id: str, paint: Paint | None) -> SegmentedObject:
        """Add another object's mask to an object and delete the other, as one step of the history."""
        with self._changing(object_id) as (old, _):
            other, prompts, times = self.get(other_id), old.prompts, old.times
            if paint is not None:
                prompts, times = (*prompts, paint), (*times, now())
                check_prompts(prompts, self.grid)
            changed = replace(old, prompts=prompts, times=times)
            kept = [each for each in self.objects if each.id != other_id]
            states = tuple(changed if each.id == object_id else each for each in kept)
            self._history.push(states, f"merge {other.name} into {old.name}")
            self._selected = object_id
            return changed

    def replace_objects(self, objects: Sequence[SegmentedObject], *, change: str) -> None:
        """Put these objects in the place of all, as one step of the history; the first is selected.

        Raises:
            PromptError: a prompt that does not lie on the volume.
            SettingsError: names or labels that are given twice, or that are no names, labels or colours.
        """
        with self._lock:
            self._take(objects)
            self._history.push(tuple(objects), change)

    def begin_with(self, objects: Sequence[SegmentedObject]) -> None:
        """Replace all objects and restart the history here."""
        with self._lock:
            self._take(objects)
            self._history = History(tuple(objects))

    def _take(self, objects: Sequence[SegmentedObject]) -> None:
        for at, each in enumerate(objects):
            checked_name(each.name, objects[:at])
            checked_label(each.label, objects[:at])
            checked_colour(each.colour)
            check_prompts(each.prompts, self.grid)
        numbers = [int(each.id[1:]) for each in objects if re.fullmatch(r"o[0-9]{1,9}", each.id)]
        self._last_id = max([self._last_id, *numbers])
        self._selected = objects[0].id if objects else None

    # Inside

    def _refuse_locked(self, prompts: Sequence[AnyPrompt], newest: AnyPrompt) -> None:
        if any(isinstance(each, Paint) and each.locked for each in prompts):
            from medsam_app.predict.core.paint_layer import refuse_locked  # torch

            refuse_locked(prompts, newest, self.grid)

    @contextmanager
    def _changing(self, object_id: str) -> Iterator[tuple[SegmentedObject, tuple[SegmentedObject, ...]]]:
        """The lock, the object to change and all others."""
        with self._lock:
            old = self.get(object_id)
            yield old, tuple(each for each in self.objects if each.id != object_id)
