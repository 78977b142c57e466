"""The objects of a volume as they are and were: selecting, undo and redo, and each one's own past."""

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
        number: where it stands in the history, to go back to what it led to.
        change: in words.
        time: UTC in ISO 8601.
        now: whether the object is as this step left it.
    """

    number: int
    change: str
    time: str
    now: bool


class ObjectHistory:
    """States of the objects of a grid. Safe to call from several threads.

    Args:
        grid: prompts must lie on it.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._lock = RLock()
        self._history: History[tuple[SegmentedObject, ...]] = History(())
        self._selected: str | None = None
        self._last_id = 0

    # Looking

    @property
    def objects(self) -> tuple[SegmentedObject, ...]:
        """The objects, in the order they were added."""
        with self._lock:
            return self._history.state

    @property
    def selected(self) -> SegmentedObject | None:
        """The object that the next click belongs to."""
        with self._lock:
            return next((each for each in self.objects if each.id == self._selected), None)

    def get(self, object_id: str) -> SegmentedObject:
        """The object of an id.

        Raises:
            PromptError: there is none (any more).
        """
        return self.objects[self._index(object_id)]

    def select(self, object_id: str) -> SegmentedObject:
        """Choose the object that the next click belongs to. Not a step of the history."""
        with self._lock:
            found = self.get(object_id)
            self._selected = found.id
            return found

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
        """The change that `undo` would take back, such as 'add positive click to liver'."""
        with self._lock:
            return self._history.undo_text

    @property
    def redo_text(self) -> str | None:
        """The change that `redo` would make again."""
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
            now, before, found = self.get(object_id).prompts, None, []
            for number, (objects, change, time) in enumerate(self._history.past()):
                held = next((each for each in objects if each.id == object_id), None)
                if held is not None and (before is None or held.prompts != before.prompts):
                    found.append(HistoryStep(number, change, time, held.prompts == now))
                before = held
            return found

    def go_back(self, object_id: str, number: int) -> SegmentedObject:
        """Give an object the prompts it had after a step, as a new step; others stay as they are.

        Raises:
            PromptError: there is no such object, or it was not there then.
        """
        with self._lock:
            old, past = self.get(object_id), self._history.past()
            objects, change, _ = past[number] if 0 <= number < len(past) else ((), "", "")
            held = next((each for each in objects if each.id == object_id), None)
            if held is None:
                raise PromptError(f"'{old.name}' was not there at step {number}; choose a step of its own.")
            changed = replace(old, prompts=held.prompts, times=held.times)
            return self._swap(changed, f"take {old.name} back to '{change}'")

    # Inside

    def _index(self, object_id: str) -> int:
        for at, each in enumerate(self.objects):
            if each.id == object_id:
                return at
        known = ", ".join(f"'{each.id}' ({each.name})" for each in self.objects) or "none"
        raise PromptError(f"There is no object '{object_id}'; objects here: {known}.")

    def _swap(self, changed: SegmentedObject, change: str) -> SegmentedObject:
        if changed != self.get(changed.id):
            self._history.push(
                tuple(changed if each.id == changed.id else each for each in self.objects), change
            )
        return changed

    def _move(self, move: Callable[[], bool]) -> bool:
        with self._lock:
            before = self.objects
            if not move():
                return False
            # What came back or changed is what the person now looks at.
            touched = [each for each in self.objects if each not in before]
            if touched:
                self._selected = touched[-1].id
            elif self.selected is None:
                self._selected = self.objects[-1].id if self.objects else None
            return True
