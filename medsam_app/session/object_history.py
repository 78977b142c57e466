"""Objects of a volume: selection, undo, redo and the history of each object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import RLock

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.session.history import History
from medsam_app.session.objects import SegmentedObject


@dataclass(frozen=True)
class HistoryStep:
    """A change of one object's prompts.

    Attributes:
        number: position in the history, for `go_back`.
        change: description of the change.
        time: UTC in ISO 8601.
        now: whether the object has the prompts that it had after this step.
    """

    number: int
    change: str
    time: str
    now: bool


class ObjectHistory:
    """Objects on a grid and their earlier states. Safe to call from several threads.

    Args:
        grid: grid of the volume; all prompts must be inside it.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._lock = RLock()
        self._history: History[tuple[SegmentedObject, ...]] = History(())
        self._selected: str | None = None
        self._last_id = 0

    # Queries

    @property
    def objects(self) -> tuple[SegmentedObject, ...]:
        """Objects, in the order they were added."""
        with self._lock:
            return self._history.state

    @property
    def selected(self) -> SegmentedObject | None:
        """Selected object, to which the next click belongs."""
        with self._lock:
            return next((item for item in self.objects if item.id == self._selected), None)

    def get(self, object_id: str) -> SegmentedObject:
        """Return the object with an id.

        Raises:
            PromptError: there is no such object.
        """
        return self.objects[self._index(object_id)]

    def select(self, object_id: str) -> SegmentedObject:
        """Select the object to which the next click belongs. This is not a step of the history."""
        with self._lock:
            item = self.get(object_id)
            self._selected = item.id
            return item

    # History

    @property
    def can_undo(self) -> bool:
        """Whether a step can be undone."""
        return self.undo_text is not None

    @property
    def can_redo(self) -> bool:
        """Whether a step can be redone."""
        return self.redo_text is not None

    @property
    def undo_text(self) -> str | None:
        """Change that `undo` would revert, such as 'add positive click to liver', or None."""
        with self._lock:
            return self._history.undo_text

    @property
    def redo_text(self) -> str | None:
        """Change that `redo` would repeat, or None."""
        with self._lock:
            return self._history.redo_text

    def undo(self) -> bool:
        """Undo the last change; return False if there is none."""
        return self._move(self._history.undo)

    def redo(self) -> bool:
        """Redo the change that was undone last; return False if there is none."""
        return self._move(self._history.redo)

    def steps(self, object_id: str) -> list[HistoryStep]:
        """Return the steps that led to an object's prompts, oldest first.

        Raises:
            PromptError: there is no such object.
        """
        with self._lock:
            now, before, steps = self.get(object_id).prompts, None, []
            for number, (objects, change, time) in enumerate(self._history.past()):
                item = next((item for item in objects if item.id == object_id), None)
                if item is not None and (before is None or item.prompts != before.prompts):
                    steps.append(HistoryStep(number, change, time, item.prompts == now))
                before = item
            return steps

    def go_back(self, object_id: str, number: int) -> SegmentedObject:
        """Restore the prompts that an object had after a step, as a new step of the history.

        Other objects are unchanged.

        Raises:
            PromptError: there is no such object, or it did not exist after that step.
        """
        with self._lock:
            old, past = self.get(object_id), self._history.past()
            objects, change, _ = past[number] if 0 <= number < len(past) else ((), "", "")
            state = next((item for item in objects if item.id == object_id), None)
            if state is None:
                raise PromptError(f"'{old.name}' was not there at step {number}; choose a step of its own.")
            changed = replace(old, prompts=state.prompts, times=state.times)
            return self._swap(changed, f"take {old.name} back to '{change}'")

    # Private

    def _index(self, object_id: str) -> int:
        for index, item in enumerate(self.objects):
            if item.id == object_id:
                return index
        known = ", ".join(f"'{item.id}' ({item.name})" for item in self.objects) or "none"
        raise PromptError(f"There is no object '{object_id}'; objects here: {known}.")

    def _swap(self, changed: SegmentedObject, change: str) -> SegmentedObject:
        if changed != self.get(changed.id):
            self._history.push(
                tuple(changed if item.id == changed.id else item for item in self.objects), change
            )
        return changed

    def _move(self, move: Callable[[], bool]) -> bool:
        with self._lock:
            before = self.objects
            if not move():
                return False
            # Select the restored or changed object, so that the user sees the change.
            changed = [item for item in self.objects if item not in before]
            if changed:
                self._selected = changed[-1].id
            elif self.selected is None:
                self._selected = self.objects[-1].id if self.objects else None
            return True
