"""Cases of a fine-tuning run, split into training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from medsam_app.datasets.cases import Case, choose_cases
from medsam_app.datasets.fingerprint import Fingerprint
from medsam_app.datasets.gathering import Dataset
from medsam_app.finetuning.plan import Plan


def restrict_dataset(
    dataset: Dataset, *, split: str | None = None, datasets: Sequence[str] = (), most: int | None = None
) -> Dataset:
    """Return a dataset with only the cases, and problems, of a split and of some datasets.

    Args:
        dataset: all cases.
        split: split of the cases to keep; None for all.
        datasets: names of the datasets to keep; empty for all.
        most: most cases of each dataset; None for all.

    Raises:
        SettingsError: no case has that split or dataset, or `most` is below one.
    """
    problems = [problem for problem in dataset.problems if not datasets or problem.dataset in datasets]
    cases = choose_cases(dataset.cases, split=split, datasets=datasets, most=most)
    return replace(dataset, cases=tuple(cases), problems=tuple(problems))


def trainable_cases(cases: Sequence[Case], fingerprint: Fingerprint, plan: Plan) -> list[Case]:
    """Return the usable cases with one of the plan's labels, each name once per dataset.

    Args:
        cases: cases of the fingerprint.
        fingerprint: fingerprint of the dataset.
        plan: plan of the run.
    """
    usable = {
        (facts.dataset, facts.case, facts.image)
        for facts in fingerprint.cases
        if facts.usable and any(label.value in plan.labels for label in facts.labels)
    }
    by_key = {_key(case): case for case in reversed(cases) if (*_key(case), str(case.image)) in usable}
    return list(reversed(by_key.values()))


def split_cases(cases: Sequence[Case], plan: Plan) -> tuple[list[Case], list[Case]]:
    """Split cases into training and validation.

    The split depends only on the plan's seed and the names of the cases, so it is the same on every machine
    and in any order of the cases. If there are two cases or more, at least one is held out. Each dataset
    contributes the same fraction as far as possible, and keeps at least one case for training if possible.

    Returns:
        The cases to train on and the held-out cases, each in the given order.
    """
    groups: dict[str, set[str]] = {}
    for case in cases:
        groups.setdefault(case.dataset, set()).add(case.case)
    held_out = {
        (dataset, name)
        for dataset, count in _shares({name: len(group) for name, group in groups.items()}, plan).items()
        for name in _shuffled(groups[dataset], dataset, plan.seed)[:count]
    }
    learned = [case for case in cases if _key(case) not in held_out]
    return learned, [case for case in cases if _key(case) in held_out]


def _key(case: Case) -> tuple[str, str]:
    return case.dataset, case.case


def _shares(sizes: dict[str, int], plan: Plan) -> dict[str, int]:
    """Return how many cases of each dataset are held out, by largest remainders."""
    total = sum(sizes.values())
    if total < 2:
        return dict.fromkeys(sizes, 0)
    count = min(total - 1, max(1, round(plan.held_out * total)))
    shares = {name: min(size - 1, int(plan.held_out * size)) for name, size in sizes.items()}
    order = _shuffled(sizes, "datasets", plan.seed)
    while (missing := count - sum(shares.values())) > 0:
        spare = [name for name in order if shares[name] < sizes[name] - 1] or [
            name for name in order if shares[name] < sizes[name]
        ]
        spare.sort(key=lambda name: shares[name] - plan.held_out * sizes[name])
        for name in spare[:missing]:
            shares[name] += 1
    return shares


def _shuffled(names: Iterable[str], subject: str, seed: int) -> list[str]:
    """Return names in an order that depends only on the names, the subject and the seed."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{subject}\n{name}".encode()).digest())
