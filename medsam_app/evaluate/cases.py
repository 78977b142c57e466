"""Selection of a dataset's cases for an evaluation, and the cases that cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medsam_app.datasets.cases import Case, choose_cases
from medsam_app.datasets.gathering import Dataset
from medsam_app.errors import DatasetError, SettingsError, unknown_name

#: Split that is measured by default, and the name that selects all splits.
DEFAULT_SPLIT, ALL_SPLITS = "dev", "all"


@dataclass(frozen=True)
class Skipped:
    """A case that could not be measured, and the reason."""

    dataset: str
    case: str
    error: str


@dataclass(frozen=True, kw_only=True)
class SelectedCases:
    """Cases selected for an evaluation.

    Attributes:
        cases: cases to measure.
        split: their split; empty for all splits.
        skipped: cases that belong to the selection but have no usable files.
        description: the selection in one sentence.
        warnings: further problems of the dataset, in sentences.
    """

    cases: tuple[Case, ...]
    split: str
    skipped: tuple[Skipped, ...]
    description: str
    warnings: tuple[str, ...]


def select_cases(
    dataset: Dataset, *, split: str | None = None, datasets: Sequence[str] = (), most: int | None = None
) -> SelectedCases:
    """Select the cases to measure.

    Args:
        split: an existing split, or "all". None selects "dev" if the dataset has it, otherwise all cases.
        datasets: names of the datasets to measure; empty for all.
        most: maximum number of cases per dataset, evenly spread.

    Raises:
        DatasetError: no case has its files.
        SettingsError: the split or dataset is unknown, or `most` is below one.
    """
    problems = [problem for problem in dataset.problems if not datasets or problem.dataset in datasets]
    errors = [problem for problem in problems if problem.severity == "error"]
    if not dataset.cases:
        raise DatasetError(
            f"No case of {dataset.path} can be measured; the first of {len(errors)} problems: "
            f"{errors[0].message if errors else 'it lists no case.'}"
        )
    known = {case.split for case in dataset.cases if not datasets or case.dataset in datasets}
    chosen_split: str | None = split
    if split is None:
        chosen_split = DEFAULT_SPLIT if DEFAULT_SPLIT in known else None
    elif split == ALL_SPLITS and ALL_SPLITS not in known:
        chosen_split = None
    elif not any(known):
        raise SettingsError(
            f"The split '{split}' was asked for, but {dataset.path} says nothing of splits; leave it out."
        )
    cases = choose_cases(dataset.cases, split=chosen_split, datasets=datasets, most=most)
    count, total = len(cases), len(dataset.cases)
    amount = f"{count} of {total} cases" if count < total else f"{total} case{'' if total == 1 else 's'}"
    which = (
        f"split '{chosen_split}'"
        if chosen_split
        else ("all splits" if any(known) else "nothing is said of splits")
    )
    # An unreadable entry may belong to any split.
    errors = [problem for problem in errors if chosen_split is None or problem.split in ("", chosen_split)]
    first_errors = {(problem.dataset, problem.case): problem for problem in reversed(errors)}
    return SelectedCases(
        cases=tuple(cases),
        split=chosen_split or "",
        skipped=tuple(Skipped(*key, problem.message) for key, problem in reversed(first_errors.items())),
        description=f"Measuring {amount} of {dataset.path} ({dataset.layout}; {which}).",
        warnings=tuple(problem.message for problem in problems if problem.severity == "warning"),
    )


def check_labels(labels: Sequence[str], cases: Sequence[Case]) -> None:
    """Reject names of labels that no case has. Values are not checked: that would require the label maps.

    Raises:
        SettingsError: with the available names.
    """
    names = {name for case in cases for name in case.names.values()}
    for label in labels:
        if label not in names and not (label.isdecimal() and int(label) > 0):
            if not names:
                raise SettingsError(f"The labels have no names here; give a value instead of '{label}'.")
            raise SettingsError(unknown_name("label", label, names))
