"""Editing of the objects of a volume, with undo and redo."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from medsam_app.errors import PromptError
from medsam_app.prompts.types import Choice, Paint, can_choose, check_prompts, choice_of, choice_place
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

    Safe to call from several threads. A call that raises an error changes nothing.

    Args:
        grid: grid of the volume; all prompts must be inside it.

    Attributes:
        labels: label set. An object added without name and label becomes the first unused label of the set.
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
            name: name; by default from the label set, or 'object 1', 'object 2', ...
            label: label value; by default from the label set, or the smallest free value.
            colour: '#rrggbb'; by default from the label set, or the next colour of a palette that
                colour-blind people can distinguish.
            may_overlap: whether the object may share voxels with objects that may not overlap; see
                `SegmentedObject`.

        Raises:
            SettingsError: the name or label is in use, or the name, label or colour is invalid.
        """
        with self._lock:
            existing = self.objects
            if name is None and label is None and (unused := next_label(self.labels, existing)) is not None:
                name, label = unused.name, unused.label
                colour, may_overlap = colour or unused.colour, unused.may_overlap
            if label is None:
                taken = {item.label for item in existing}
                label = next(value for value in range(1, LARGEST_LABEL + 2) if value not in taken)
            if name is None:
                names = {item.name for item in existing}
                number = len(existing) + 1
                while f"object {number}" in names:
                    number += 1
                name = f"object {number}"
            name, label = checked_name(name, existing), checked_label(label, existing)
            colour = (
                next_colour([item.colour for item in existing]) if colour is None else checked_colour(colour)
            )
            self._last_id += 1
            added = SegmentedObject(
                id=f"o{self._last_id}", name=name, label=label, colour=colour, may_overlap=may_overlap
            )
            self._history.push((*existing, added), f"add {name}")
            self._selected = added.id
            return added

    def rename(self, object_id: str, name: str) -> SegmentedObject:
        """Rename an object.

        Raises:
            PromptError, SettingsError: see `get` and `add_object`.
        """
        with self._changing(object_id) as (old, remaining):
            return self._swap(replace(old, name=checked_name(name, remaining)), f"rename {old.name}")

    def set_label(self, object_id: str, label: int) -> SegmentedObject:
        """Change the label value of an object.

        Raises:
            PromptError, SettingsError: see `get` and `add_object`.
        """
        with self._changing(object_id) as (old, remaining):
            return self._swap(
                replace(old, label=checked_label(label, remaining)), f"change label of {old.name}"
            )

    def set_colour(self, object_id: str, colour: str) -> SegmentedObject:
        """Change the colour of an object.

        Raises:
            PromptError, SettingsError: see `get` and `add_object`.
        """
        with self._changing(object_id) as (old, _):
            return self._swap(replace(old, colour=checked_colour(colour)), f"change colour of {old.name}")

    def set_may_overlap(self, object_id: str, may: bool) -> SegmentedObject:
        """Set whether an object may share voxels with other objects."""
        with self._changing(object_id) as (old, _):
            words = "let" if may else "do not let"
            return self._swap(replace(old, may_overlap=may), f"{words} {old.name} overlap")

    def delete_object(self, object_id: str) -> None:
        """Delete an object and its prompts; if it was selected, select the object before it."""
        with self._changing(object_id) as (old, remaining):
            index = self._index(object_id)
            self._history.push(remaining, f"delete {old.name}")
            if self._selected == object_id:
                self._selected = remaining[max(index - 1, 0)].id if remaining else None

    # Changing prompts

    def add_prompt(self, object_id: str, prompt: AnyPrompt) -> SegmentedObject:
        """Append a prompt.

        Raises:
            PromptError: the prompt is outside the volume, or there is no such object.
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
        """Replace one prompt, for example after a click was moved.

        Raises:
            PromptError: see `add_prompt`, or there is no prompt with that index.
        """
        with self._changing(object_id) as (old, _):
            position = checked_index(old, index)
            prompts = (*old.prompts[:position], prompt, *old.prompts[position + 1 :])
            times = (*old.times[:position], now(), *old.times[position + 1 :])
            changed = _without_stale_choice(replace(old, prompts=prompts, times=times), position)
            check_prompts(changed.prompts, self.grid)
            self._refuse_locked((*old.prompts[:position], *old.prompts[position + 1 :]), prompt)
            return self._swap(changed, f"move {prompt_words(prompt)} of {old.name}")

    def delete_prompt(self, object_id: str, index: int) -> SegmentedObject:
        """Delete one prompt.

        Raises:
            PromptError: there is no prompt with that index.
        """
        with self._changing(object_id) as (old, _):
            position = checked_index(old, index)
            prompts = (*old.prompts[:position], *old.prompts[position + 1 :])
            times = (*old.times[:position], *old.times[position + 1 :])
            changed = _without_stale_choice(replace(old, prompts=prompts, times=times), position)
            return self._swap(changed, f"delete {prompt_words(old.prompts[position])} of {old.name}")

    def choose(self, object_id: str, number: int) -> SegmentedObject:
        """Choose another mask for the first prompt of an object; a later choice replaces an earlier one.

        Args:
            object_id: the object; it has no prompt after the first that locates it, except for a choice.
            number: number of the mask, see `VolumePredictor.alternatives`.

        Raises:
            PromptError: there is no such object, or it has no prompt or further prompts.
        """
        with self._changing(object_id) as (old, _):
            place = choice_place(old.prompts)
            if place is None or not can_choose(old.prompts):
                has = "has more prompts" if place else "does not start with one"
                raise PromptError(
                    f"Another mask can be chosen only after the first click or box, and '{old.name}' {has}; "
                    "undo to its first prompt, or start a new object."
                )
            prompts = (*old.prompts[:place], choice_of(number))
            changed = replace(old, prompts=prompts, times=(*old.times[:place], now()))
            return self._swap(changed, f"choose mask {number} for {old.name}")

    def clear(self, object_id: str) -> SegmentedObject:
        """Delete all prompts of an object."""
        with self._changing(object_id) as (old, _):
            return self._swap(replace(old, prompts=(), times=()), f"clear {old.name}")

    def absorb(self, object_id: str, other_id: str, paint: Paint | None) -> SegmentedObject:
        """Merge another object into an object and delete the former, as one step of the history.

        Args:
            object_id: the object that remains.
            other_id: the object that is deleted.
            paint: the voxels to add, or None if there are none.
        """
        with self._changing(object_id) as (old, _):
            absorbed, prompts, times = self.get(other_id), old.prompts, old.times
            if paint is not None:
                prompts, times = (*prompts, paint), (*times, now())
                check_prompts(prompts, self.grid)
            changed = replace(old, prompts=prompts, times=times)
            remaining = [item for item in self.objects if item.id != other_id]
            states = tuple(changed if item.id == object_id else item for item in remaining)
            self._history.push(states, f"merge {absorbed.name} into {old.name}")
            self._selected = object_id
            return changed

    def replace_objects(self, objects: Sequence[SegmentedObject], *, change: str) -> None:
        """Replace all objects, as one step of the history, and select the first.

        Raises:
            PromptError: a prompt is outside the volume.
            SettingsError: a name or label occurs twice, or a name, label or colour is invalid.
        """
        with self._lock:
            self._adopt(objects)
            self._history.push(tuple(objects), change)

    def begin_with(self, objects: Sequence[SegmentedObject]) -> None:
        """Replace all objects and start a new history."""
        with self._lock:
            self._adopt(objects)
            self._history = History(tuple(objects))

    def _adopt(self, objects: Sequence[SegmentedObject]) -> None:
        """Check the objects, continue their numbering, and select the first."""
        for index, item in enumerate(objects):
            checked_name(item.name, objects[:index])
            checked_label(item.label, objects[:index])
            checked_colour(item.colour)
            check_prompts(item.prompts, self.grid)
        numbers = [int(item.id[1:]) for item in objects if re.fullmatch(r"o[0-9]{1,9}", item.id)]
        self._last_id = max([self._last_id, *numbers])
        self._selected = objects[0].id if objects else None

    # Private

    def _refuse_locked(self, prompts: Sequence[AnyPrompt], newest: AnyPrompt) -> None:
        if any(isinstance(prompt, Paint) and prompt.locked for prompt in prompts):
            from medsam_app.predict.core.paint_layer import refuse_locked  # torch

            refuse_locked(prompts, newest, self.grid)

    @contextmanager
    def _changing(self, object_id: str) -> Iterator[tuple[SegmentedObject, tuple[SegmentedObject, ...]]]:
        """Hold the lock; yield the object to change and all other objects."""
        with self._lock:
            old = self.get(object_id)
            yield old, tuple(item for item in self.objects if item.id != object_id)


def _without_stale_choice(changed: SegmentedObject, position: int) -> SegmentedObject:
    """Return an object without the choice of a mask if the prompt at `position`, before it, has changed."""
    for number, prompt in enumerate(changed.prompts):
        if isinstance(prompt, Choice) and position <= number:
            prompts = (*changed.prompts[:number], *changed.prompts[number + 1 :])
            times = (*changed.times[:number], *changed.times[number + 1 :])
            return replace(changed, prompts=prompts, times=times)
    return changed
