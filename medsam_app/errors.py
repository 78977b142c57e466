"""Errors that a user can cause and fix.

Every message is one or two sentences that state the subject, the actual and the expected value, and what to
do next. The command line prints the message and exits with status 2; the browser shows it.

    MedsamError
    ├── VolumeError        a file or folder that cannot be used as a volume
    │   ├── SeriesChoice   several series, frames or channels: one must be chosen (carries the choices)
    │   └── MachineFault   the machine cannot read it now: no space, or too many open files
    ├── DatasetError       a folder or list in which no labelled cases are found
    ├── GridMismatch       a mask and an image that do not lie on the same grid
    ├── PromptError        a prompt that makes no sense on this volume
    ├── PromptFileError    a prompt file that cannot be read or does not belong to this image
    ├── ModelError         an unknown model, or weights that do not fit it
    ├── AdapterError       an adapter that does not fit, cannot be read, or cannot do what is requested
    ├── SaveError          an output that could not be written or did not read back as written
    ├── WorklistError      a worklist that cannot be opened or written, or a case that is not in it
    │   └── WorklistConflict   another user changed the case meanwhile (carries its version)
    └── SettingsError      an option or a setting out of its range
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError


class MedsamError(Exception):
    """Base of all errors caused by the input, not by the program."""


class VolumeError(MedsamError):
    """A file or folder that cannot be used as a volume."""


class SeriesChoice(VolumeError):
    """Several series, frames or channels were found and none was chosen.

    Attributes:
        option: name of the keyword argument of `load_volume` that makes the choice
            ("series", "frame" or "channel").
        choices: valid values for it, as (value, description) pairs.
    """

    def __init__(self, message: str, *, option: str, choices: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.option = option
        self.choices = list(choices)


class MachineFault(VolumeError):
    """A file or folder that the machine cannot read now, regardless of its contents."""


class DatasetError(MedsamError):
    """A folder or list in which no labelled cases are found."""


class GridMismatch(MedsamError):
    """A mask and an image that do not lie on the same grid."""


class PromptError(MedsamError):
    """A prompt that makes no sense on this volume."""


class PromptFileError(MedsamError):
    """A prompt file that cannot be read or does not belong to this image."""


class ModelError(MedsamError):
    """An unknown model, or weights that do not fit it."""


class AdapterError(MedsamError):
    """An adapter that does not fit the model, cannot be read, or cannot do what is requested."""


class SaveError(MedsamError):
    """An output that could not be written, or did not read back as written."""


class WorklistError(MedsamError):
    """A worklist that cannot be opened or written, or a case that is not in it."""


class WorklistConflict(WorklistError):
    """Another user changed a case in the meantime.

    Attributes:
        version: current version of the case.
    """

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class SettingsError(MedsamError):
    """An option or a setting out of its range."""


def unknown_name(what: str, name: str, valid: Iterable[str]) -> str:
    """Return the sentence for an unknown name, with the valid names and a close match, if any."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There is no {what} '{name}'.{hint} Known: {', '.join(names)}."


class InvalidField(NamedTuple):
    """A problem that pydantic reports for a field.

    Attributes:
        name: dotted path of the field: 'a.b.0'; '' for the complete data.
        kind: pydantic's name of the problem, such as 'missing' or 'extra_forbidden'.
        message: pydantic's sentence, capitalized and without a full stop.
        value: the invalid data.
    """

    name: str
    kind: str
    message: str
    value: Any

    @property
    def clause(self) -> str:
        """The message with a lower-case first letter, to use within a sentence."""
        return f"{self.message[0].lower()}{self.message[1:]}"


def invalid_fields(error: ValidationError) -> list[InvalidField]:
    """Return all problems of a pydantic error; messages of our own validators are unchanged."""
    fields = []
    for problem in error.errors(include_url=False):
        validator_error = problem["ctx"]["error"] if problem["type"] == "value_error" else None
        name = ".".join(str(step) for step in problem["loc"])
        message = problem["msg"] if validator_error is None else str(validator_error)
        fields.append(InvalidField(name, problem["type"], message, problem["input"]))
    return fields


def setting_problem(error: ValidationError, valid: Iterable[str]) -> str | None:
    """Return the sentence for a setting that is unknown or that our own validators reject, else None.

    Args:
        error: pydantic's error; only its first problem is used.
        valid: names of the valid settings.
    """
    first = invalid_fields(error)[0]
    if first.kind == "extra_forbidden":
        return unknown_name("setting", first.name, valid)
    return first.message if first.kind == "value_error" else None
