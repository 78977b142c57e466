"""Unlimited undo and redo of immutable states."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Generic, TypeVar

State = TypeVar("State")


def now() -> str:
    """Return the current time, UTC in ISO 8601."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class History(Generic[State]):
    """Sequence of states and a current position in it.

    Args:
        start: state before the first change.
    """

    def __init__(self, start: State) -> None:
        self._states = [start]
        self._changes: list[str] = []  # change i leads from state i to state i + 1
        self._times: list[str] = []  # time of each change
        self._position = 0

    @property
    def state(self) -> State:
        """Current state."""
        return self._states[self._position]

    def push(self, state: State, change: str) -> None:
        """Append a new state; undone states can no longer be redone.

        Args:
            state: new state; immutable.
            change: description of the change that led to it.
        """
        del self._states[self._position + 1 :], self._changes[self._position :]
        del self._times[self._position :]
        self._times.append(now())
        self._states.append(state)
        self._changes.append(change)
        self._position += 1

    def past(self) -> list[tuple[State, str, str]]:
        """Return the states up to the current one, oldest first, with the change and time of each."""
        end = self._position
        return list(
            zip(self._states[: end + 1], ["", *self._changes[:end]], ["", *self._times[:end]], strict=True)
        )

    @property
    def undo_text(self) -> str | None:
        """Change that `undo` would revert, or None."""
        return self._changes[self._position - 1] if self._position else None

    @property
    def redo_text(self) -> str | None:
        """Change that `redo` would repeat, or None."""
        return self._changes[self._position] if self._position < len(self._changes) else None

    def undo(self) -> bool:
        """Go one state back; return False if there is none."""
        possible = self.undo_text is not None
        self._position -= possible
        return possible

    def redo(self) -> bool:
        """Go one state forward; return False if there is none."""
        possible = self.redo_text is not None
        self._position += possible
        return possible
