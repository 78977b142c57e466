"""Labels to train on: the requested ones, or those of enough cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsam_app.datasets.fingerprint import first_few
from medsam_app.datasets.fingerprint_case import CaseFacts
from medsam_app.errors import SettingsError, unknown_name

#: Labels of fewer cases are learned only if requested.
_FEWEST = 2
#: Labels of fewer cases get a warning.
_FEW = 5


@dataclass(frozen=True)
class RequestedLabels:
    """Labels to learn.

    Attributes:
        names: names by label value.
        reason: reason for the choice, for the user.
        warnings: sentences on labels that few cases have.
    """

    names: dict[int, str]
    reason: str
    warnings: tuple[str, ...]


def select_labels(
    cases: Sequence[CaseFacts], requested: Sequence[str | int] | Mapping[Any, str] | None
) -> RequestedLabels:
    """Return the labels to learn.

    Args:
        cases: usable cases.
        requested: names or values, or a mapping from values to names that replace those of the dataset; None
            for every label that two cases have.

    Raises:
        SettingsError: no case has a requested label, or a value has different meanings in two datasets.
    """
    counts: dict[int, int] = {}
    for case in cases:
        for label in case.labels:
            counts[label.value] = counts.get(label.value, 0) + 1
    names = {value: _name(value, cases) for value in sorted(counts)}
    if not names:
        raise SettingsError("No case that can be used has a label above 0, so there is nothing to learn.")
    if isinstance(requested, Mapping):
        values = {value: str(name) for key, name in requested.items() for value in _values(str(key), names)}
        reason = "as asked for"
    elif requested:
        values = {value: names[value] for label in requested for value in _values(str(label), names)}
        reason = "as asked for"
    else:
        frequent = [value for value in names if counts[value] >= _FEWEST]
        values = {value: names[value] for value in frequent or names}
        reason = f"all that {_FEWEST} cases have" if frequent else "all that there are"
    values = dict(sorted(values.items()))
    if not isinstance(requested, Mapping):
        for value in values:
            _check_meaning(value, cases)
    omitted = [names[value] for value in names if not requested and value not in values]
    warnings = [f"Labels left out, since only one case has them: {first_few(omitted)}."] if omitted else []
    few = [f"{name} {counts[value]}" for value, name in values.items() if counts[value] < _FEW]
    if few and len(cases) > 1:
        warnings.append(f"Few cases have these labels: {first_few(few)}; more would teach more.")
    return RequestedLabels(values, reason, tuple(warnings))


def _name(value: int, cases: Sequence[CaseFacts]) -> str:
    candidates = (
        label.name for case in cases for label in case.labels if label.value == value and label.name
    )
    return next(candidates, f"label {value}")


def _values(label: str, names: dict[int, str]) -> list[int]:
    """Return the values of all labels with a name, or the value that the text is."""
    text = label.strip().casefold()
    values = [value for value, name in names.items() if name.casefold() == text]
    if not values and text.isdecimal() and int(text) in names:
        values = [int(text)]
    if not values:
        known = [name if name == f"label {value}" else f"{name} ({value})" for value, name in names.items()]
        raise SettingsError(unknown_name("label", label, known).replace("Known:", "Known, with values:"))
    return values


def _check_meaning(value: int, cases: Sequence[CaseFacts]) -> None:
    """Raise an error if a value has different names in the cases."""
    meanings: dict[str, str] = {}
    for case in cases:
        for label in case.labels:
            if label.value == value and label.name:
                meanings.setdefault(label.name.strip().casefold(), f"{case.dataset}, {case.case}")
    if len(meanings) > 1:
        uses = ", ".join(f"'{name}' in {where}" for name, where in meanings.items())
        raise SettingsError(
            f"The label value {value} does not mean the same everywhere ({uses}); choose cases by --datasets "
            'or --split, or give it one name in a settings file, as in {"labels": {"1": "lesion"}}.'
        )
