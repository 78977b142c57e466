"""Rows of a worklist: cases, versions of the work on them, and events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["new", "in progress", "to review", "accepted", "skipped"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, kw_only=True)
class WorklistCase:
    """A case of the list.

    Attributes:
        name: its path within the folder without the ending, with '/'; see `FoundVolume.case`.
        path: of the volume, relative to the folder, with '/'.
        series: UID of a DICOM series, or None.
        problem: a sentence where it is known already that it cannot be read.
        missing: whether it was not found when the folder was looked through last.
        state: how far it is.
        version: grows by one with each change of its work.
        who, changed: who changed it last and when, UTC in ISO 8601; empty if no user did.
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
        version: of the case when this was written.
        prompts: a prompt file, as text.
        made_by: of what its masks were made, as text: model and adapter with their hashes.
        who, changed: who wrote it and when.
    """

    version: int
    prompts: str
    made_by: str
    who: str
    changed: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a case."""

    name: str
    what: str
    who: str
    changed: str
