"""Cases of a finetuning run: which are used, which are learned from, which are measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from medsam_app.datasets.cases import Case, choose_cases
from medsam_app.datasets.fingerprint import Fingerprint
from medsam_app.datasets.gathering import Dataset
from medsam_app.finetuning.plan import Plan


def chosen(
    dataset: Dataset, *, split: str | None = None, datasets: Sequence[str] = (), most: int | None = None
) -> Dataset:
    """The dataset with the cases of a split and of some datasets alone, and the problems of those.

    Raises:
        SettingsError: no case has that split or dataset, or `most` is below one.
    """
    problems = [each for each in dataset.problems if not datasets or each.dataset in datasets]
    cases = choose_cases(dataset.cases, split=split, datasets=datasets, most=most)
    return replace(dataset, cases=tuple(cases), problems=tuple(problems))


def teachable(cases: Sequence[Case], found: Fingerprint, plan: Plan) -> list[Case]:
    """Return usable cases with one of the plan's labels, once per name and dataset.

    Args:
        cases: those that the fingerprint was made of.
    """
    good = {
        (facts.dataset, facts.case, facts.image)
        for facts in found.cases
        if facts.usable and any(label.value in plan.labels for label in facts.labels)
    }
    named = {_key(case): case for case in reversed(cases) if (*_key(case), str(case.image)) in good}
    return list(reversed(named.values()))


def split_cases(cases: Sequence[Case], plan: Plan) -> tuple[list[Case], list[Case]]:
    """Cases to learn from and cases to measure on.

    Which is which follows from the plan's seed and the names of the cases alone, so it is the same on every
    machine and in whatever order they are listed. Of two cases or more one is measured at least; each
    dataset gives its part as nearly as whole cases allow, and keeps one to learn from where it can.

    Returns:
        learned from, measured; each in the order given.
    """
    groups: dict[str, set[str]] = {}
    for case in cases:
        groups.setdefault(case.dataset, set()).add(case.case)
    held = {
        (dataset, name)
        for dataset, count in _shares({name: len(group) for name, group in groups.items()}, plan).items()
        for name in _drawn(groups[dataset], dataset, plan.seed)[:count]
    }
    learned = [case for case in cases if _key(case) not in held]
    return learned, [case for case in cases if _key(case) in held]


def _key(case: Case) -> tuple[str, str]:
    return case.dataset, case.case


def _shares(sizes: dict[str, int], plan: Plan) -> dict[str, int]:
    """Return how many cases of each dataset are held out, by largest remainders."""
    total = sum(sizes.values())
    if total < 2:
        return dict.fromkeys(sizes, 0)
    wanted = min(total - 1, max(1, round(plan.held_out * total)))
    shares = {name: min(size - 1, int(plan.held_out * size)) for name, size in sizes.items()}
    order = _drawn(sizes, "datasets", plan.seed)
    while (missing := wanted - sum(shares.values())) > 0:
        spare = [name for name in order if shares[name] < sizes[name] - 1] or [
            name for name in order if shares[name] < sizes[name]
        ]
        spare.sort(key=lambda name: shares[name] - plan.held_out * sizes[name])
        for name in spare[:missing]:
            shares[name] += 1
    return shares


def _drawn(names: Iterable[str], about: str, seed: int) -> list[str]:
    """Return names in an order that depends only on the seed."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{about}\n{name}".encode()).digest())
