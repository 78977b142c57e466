"""Labels to train on: those requested, or those that enough cases have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsam_app.datasets.fingerprint import first_few
from medsam_app.datasets.fingerprint_case import CaseFacts
from medsam_app.errors import SettingsError, unknown_name

#: A label of fewer cases is not learned unless it is requested.
_FEWEST = 2
#: A label with fewer cases gets a warning.
_FEW = 5


@dataclass(frozen=True)
class RequestedLabels:
    """Labels to learn.

    Attributes:
        names: by value.
        reason: why these.
        warnings: sentences on those that few cases have.
    """

    names: dict[int, str]
    reason: str
    warnings: tuple[str, ...]


def wanted_labels(
    cases: Sequence[CaseFacts], asked: Sequence[str | int] | Mapping[Any, str] | None
) -> RequestedLabels:
    """The labels to learn.

    Args:
        cases: those that can be used.
        asked: names or values, or names by value, whatever the dataset calls them; None for every label
            that two cases have.

    Raises:
        SettingsError: a label that no case has, or a value that means one thing in one dataset and another
            in the next.
    """
    counts: dict[int, int] = {}
    for case in cases:
        for label in case.labels:
            counts[label.value] = counts.get(label.value, 0) + 1
    names = {value: _name(value, cases) for value in sorted(counts)}
    if not names:
        raise SettingsError("No case that can be used has a label above 0, so there is nothing to learn.")
    if isinstance(asked, Mapping):
        values = {value: str(name) for key, name in asked.items() for value in _values(str(key), names)}
        reason = "as asked for"
    elif asked:
        values = {value: names[value] for each in asked for value in _values(str(each), names)}
        reason = "as asked for"
    else:
        often = [value for value in names if counts[value] >= _FEWEST]
        values = {value: names[value] for value in often or names}
        reason = f"all that {_FEWEST} cases have" if often else "all that there are"
    values = dict(sorted(values.items()))
    if not isinstance(asked, Mapping):
        for value in values:
            _check_meaning(value, cases)
    left = [names[value] for value in names if not asked and value not in values]
    warnings = [f"Labels left out, since only one case has them: {first_few(left)}."] if left else []
    few = [f"{name} {counts[value]}" for value, name in values.items() if counts[value] < _FEW]
    if few and len(cases) > 1:
        warnings.append(f"Few cases have these labels: {first_few(few)}; more would teach more.")
    return RequestedLabels(values, reason, tuple(warnings))


def _name(value: int, cases: Sequence[CaseFacts]) -> str:
    named = (label.name for case in cases for label in case.labels if label.value == value and label.name)
    return next(named, f"label {value}")


def _values(asked: str, names: dict[int, str]) -> list[int]:
    """Values of the labels of that name, or the value itself."""
    text = asked.strip().casefold()
    found = [value for value, name in names.items() if name.casefold() == text]
    if not found and text.isdecimal() and int(text) in names:
        found = [int(text)]
    if not found:
        known = [name if name == f"label {value}" else f"{name} ({value})" for value, name in names.items()]
        raise SettingsError(unknown_name("label", asked, known).replace("Known:", "Known, with values:"))
    return found


def _check_meaning(value: int, cases: Sequence[CaseFacts]) -> None:
    """One value must not stand for two things."""
    meanings: dict[str, str] = {}
    for case in cases:
        for label in case.labels:
            if label.value == value and label.name:
                meanings.setdefault(label.name.strip().casefold(), f"{case.dataset}, {case.case}")
    if len(meanings) > 1:
        told = ", ".join(f"'{name}' in {about}" for name, about in meanings.items())
        raise SettingsError(
            f"The label value {value} does not mean the same everywhere ({told}); choose cases by --datasets "
            'or --split, or give it one name in a settings file, as in {"labels": {"1": "lesion"}}.'
        )
