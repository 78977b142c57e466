"""Which cases of a dataset are measured, and which cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medsam_app.datasets.cases import Case, choose_cases
from medsam_app.datasets.gathering import Dataset
from medsam_app.errors import DatasetError, SettingsError, unknown_name

#: The split that is measured where none is requested, and what asks for all of them.
USUAL, EVERY = "dev", "all"


@dataclass(frozen=True)
class Skipped:
    """A case that could not be measured, and why."""

    dataset: str
    case: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The choice.

    Attributes:
        cases: those that are measured.
        split: which they are of, empty for all.
        skipped: those that would be, if their files were there.
        said: what was taken, in a sentence.
        warnings: what else is odd about the dataset, in sentences.
    """

    cases: tuple[Case, ...]
    split: str
    skipped: tuple[Skipped, ...]
    said: str
    warnings: tuple[str, ...]


def take_cases(
    dataset: Dataset, *, split: str | None = None, datasets: Sequence[str] = (), most: int | None = None
) -> Taken:
    """Cases to measure.

    Args:
        split: one that there is, or "all"; None for "dev" where there is such a split, otherwise all.
        datasets: names of those that are measured; none named for all.
        most: at most this many per dataset, evenly spread.

    Raises:
        DatasetError: no case has its files.
        SettingsError: an unknown split or dataset, or `most` is below one.
    """
    problems = [each for each in dataset.problems if not datasets or each.dataset in datasets]
    errors = [each for each in problems if each.severity == "error"]
    if not dataset.cases:
        raise DatasetError(
            f"No case of {dataset.path} can be measured; the first of {len(errors)} problems: "
            f"{errors[0].message if errors else 'it lists no case.'}"
        )
    known = {case.split for case in dataset.cases if not datasets or case.dataset in datasets}
    taken: str | None = split
    if split is None:
        taken = USUAL if USUAL in known else None
    elif split == EVERY and EVERY not in known:
        taken = None
    elif not any(known):
        raise SettingsError(
            f"The split '{split}' was asked for, but {dataset.path} says nothing of splits; leave it out."
        )
    cases = choose_cases(dataset.cases, split=taken, datasets=datasets, most=most)
    count, every = len(cases), len(dataset.cases)
    of = f"{count} of {every} cases" if count < every else f"{every} case{'' if every == 1 else 's'}"
    which = f"split '{taken}'" if taken else ("all splits" if any(known) else "nothing is said of splits")
    # An entry that cannot be read may be of any split.
    errors = [each for each in errors if taken is None or each.split in ("", taken)]
    counted = {(each.dataset, each.case): each for each in reversed(errors)}
    return Taken(
        cases=tuple(cases),
        split=taken or "",
        skipped=tuple(Skipped(*key, each.message) for key, each in reversed(counted.items())),
        said=f"Measuring {of} of {dataset.path} ({dataset.layout}; {which}).",
        warnings=tuple(each.message for each in problems if each.severity == "warning"),
    )


def check_labels(labels: Sequence[str], cases: Sequence[Case]) -> None:
    """Refuse names of labels that no case has. Of a value, label maps alone could tell.

    Raises:
        SettingsError: says which names there are.
    """
    names = {name for case in cases for name in case.names.values()}
    for label in labels:
        if label not in names and not (label.isdecimal() and int(label) > 0):
            if not names:
                raise SettingsError(f"The labels have no names here; give a value instead of '{label}'.")
            raise SettingsError(unknown_name("label", label, names))
