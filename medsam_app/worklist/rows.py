"""Rows of the worklist database: cases, versions of their work, and events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["new", "in progress", "to review", "accepted", "skipped"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True)
class WorklistCase:
    """Case of a worklist.

    Attributes:
        name: path relative to the folder, without the ending, with '/'; see `FoundVolume.case`.
        path: path of the volume, relative to the folder, with '/'.
        series: UID of a DICOM series, or None.
        problem: error message if the volume is known to be unreadable, else empty.
        missing: whether the last scan of the folder did not find the volume.
        state: progress of the work.
        version: number of changes of the work.
        who, changed: user and time of the last change, UTC in ISO 8601; empty if there is none.
    """

    name: str
    path: str
    series: str | None
    problem: str
    missing: bool
    state: State
    version: int
    who: str
    changed: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """One version of the work on a case.

    Attributes:
        version: version of the case.
        prompts: prompt file, as text.
        made_by: model and adapter of the masks with their hashes, as JSON.
        who, changed: user and time of the change, UTC in ISO 8601.
    """

    version: int
    prompts: str
    made_by: str
    who: str
    changed: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """Event in the history of a case.

    Attributes:
        name: name of the case.
        what: description of the event.
        who, changed: user and time of the event, UTC in ISO 8601.
    """

    name: str
    what: str
    who: str
    changed: str
