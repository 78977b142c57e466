"""Summaries of scores: means with intervals, clicks to a Dice, and harmful clicks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsam_app.evaluate.bootstrap import Drawn, Mean, draw, generator, interval
from medsam_app.measure.scores import FalseLabel, Score

#: Clicks after which means are given.
CLICKS = (1, 2, 3, 5, 10)
#: Dice values whose number of clicks is counted.
TARGETS = (0.80, 0.85)
#: Classes of size: name and number of voxels below which an object belongs to it.
SIZES = (("small", 1_000), ("medium", 20_000), ("large", None))
#: An object whose last mask is this much below its best one was spoilt by clicks.
SPOILT = 0.05
_MEASURES = ("dice", "surface_dice", "hd95")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Means of some objects.

    Attributes:
        kind: "dataset", "modality", "size", "label", "objects" (all of them) or "datasets" (the mean over
            datasets, each weighing the same; cases are resampled within their datasets).
        name: which dataset, modality, class of size or label; a label has its dataset before it where there
            are several.
        objects, cases: how many.
        dice: by the number of clicks.
        surface_dice, hd95: likewise; empty where not measured.
    """

    kind: str
    name: str
    objects: int
    cases: int
    dice: dict[int, Mean]
    surface_dice: dict[int, Mean] = field(default_factory=dict)
    hd95: dict[int, Mean] = field(default_factory=dict)


@dataclass(frozen=True)
class Reach:
    """Clicks that it takes to a Dice.

    Attributes:
        target: the Dice.
        clicks: mean over objects; one that never gets there counts as one click more than were made.
        never: share of the objects that never do.
    """

    target: float
    clicks: Mean
    never: float


@dataclass(frozen=True)
class Spoilt:
    """An object whose last mask is worse than an earlier one."""

    dataset: str
    case: str
    label: str
    best: float
    last: float


@dataclass(frozen=True)
class Summary:
    """Summary of one method.

    Attributes:
        clicks: on each object; 0 of a method that finds labels without a prompt. One that begins with what
            it found has means after 0 clicks too.
        groups: datasets, modalities, classes of size and labels in this order, then "objects" and "datasets".
        reach: for each target; nothing where nothing was clicked.
        honoured: share of the objects whose last mask honours all clicks.
        seconds: median time of a click, or of a label map.
        worse: after how many of the clicks the mean over all objects was lower than before.
        spoilt: objects that end `SPOILT` or more below their own best.
        worst: the one of these that lost most.
        false_labels: labels that were found in cases that have none of them.
    """

    method: str
    clicks: int
    groups: tuple[Group, ...]
    reach: tuple[Reach, ...]
    honoured: float
    seconds: float
    worse: int
    spoilt: int
    worst: Spoilt | None
    false_labels: int = 0

    def group(self, kind: str, name: str | None = None) -> Group | None:
        """The first group of a kind, or that of a name; None where the method has no such objects."""
        return next((each for each in self.groups if each.kind == kind and name in (None, each.name)), None)


def size_class(voxels: int) -> str:
    """Name of the class of size of an object."""
    return next(name for name, limit in SIZES if limit is None or voxels < limit)


def shown_clicks(clicks: int) -> tuple[int, ...]:
    """Return the numbers of `CLICKS` up to the number made, and that number."""
    return tuple(sorted({*(number for number in CLICKS if number < clicks), clicks}))


def summarise(
    scores: Sequence[Score],
    *,
    shown: Sequence[int] | None = None,
    targets: Sequence[float] = TARGETS,
    false: Sequence[FalseLabel] = (),
    seed: int = 0,
) -> tuple[Summary, ...]:
    """One summary a method, in the order in which they come.

    Args:
        scores: each object of a method with the same clicks, from 0 or 1 on without a gap, or click 0 alone.
        shown: after which clicks means are given; None for `shown_clicks`.
        targets: Dice values whose clicks are counted.
        false: labels that were found in cases that have none of them.
        seed: of the resampling; a group's interval depends on its own objects alone.
    """
    several = len({score.dataset for score in scores}) > 1
    return tuple(
        _summary(
            method,
            objects,
            shown or shown_clicks(objects[0][-1].click),
            targets,
            sum(each.method == method for each in false),
            seed,
            several,
        )
        for method, objects in objects_by_method(scores).items()
    )


def objects_by_method(scores: Sequence[Score]) -> dict[str, list[list[Score]]]:
    """The scores of each object, click by click, by method; all in the order in which they come."""
    found: dict[str, dict[tuple, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        found[score.method][score.object].append(score)
    return {
        method: [sorted(rows, key=lambda row: row.click) for rows in objects.values()]
        for method, objects in found.items()
    }


def case_of(rows: Sequence[Score]) -> tuple[str, str, str]:
    """Return the unit of resampling of a score."""
    return rows[0].dataset, rows[0].modality, rows[0].case


def _summary(
    method: str,
    objects: list[list[Score]],
    shown: Sequence[int],
    targets: Sequence[float],
    false_labels: int,
    seed: int,
    several: bool,
) -> Summary:
    dice = np.array([[score.dice for score in rows] for rows in objects])
    clicked = objects[0][-1].click > 0
    first = objects[0][0].click
    drops = dice.max(axis=1) - dice[:, -1]
    steps = np.diff(dice.mean(axis=0))
    worst = int(drops.argmax())
    spoilt = int((drops >= SPOILT).sum())
    cases = [case_of(rows) for rows in objects]
    return Summary(
        method=method,
        clicks=objects[0][-1].click,
        groups=_groups(objects, (0, *shown), seed, several),
        reach=tuple(_reach(dice, first, cases, target, seed) for target in targets) if clicked else (),
        honoured=float(np.mean([rows[-1].unmet == 0 for rows in objects])),
        seconds=float(np.median([s.seconds for rows in objects for s in rows if _timed(s, rows)])),
        worse=int((steps < 0).sum()),
        spoilt=spoilt,
        worst=_spoilt(objects[worst], dice[worst]) if spoilt else None,
        false_labels=false_labels,
    )


def _timed(score: Score, rows: Sequence[Score]) -> bool:
    """Return whether a score's time counts towards the median time of a click."""
    return score.seconds is not None and (score.click > 0 or rows[-1].click == 0)


def _spoilt(rows: list[Score], dice: NDArray[np.float64]) -> Spoilt:
    first = rows[0]
    return Spoilt(first.dataset, first.case, first.label, best=float(dice.max()), last=float(dice[-1]))


def _groups(objects: list[list[Score]], shown: Sequence[int], seed: int, several: bool) -> tuple[Group, ...]:
    chosen = [[row for row in rows if row.click in shown] for rows in objects]
    numbers = [row.click for row in chosen[0]]
    surfaces = any(row.surface_dice is not None for row in chosen[0])
    measures = _MEASURES if surfaces else _MEASURES[:1]
    values = np.array(
        [[getattr(row, name) for name in measures for row in rows] for rows in chosen], dtype=np.float64
    )
    cases = [case_of(rows) for rows in objects]
    groups: list[Group] = []
    datasets: list[Drawn] = []

    def add(kind: str, name: str, rows: list[int], means: list[Mean]) -> None:
        count = len(numbers)
        parts = [dict(zip(numbers, means[n * count :], strict=False)) for n in range(len(measures))]
        own = {cases[row] for row in rows}
        shown_by = dict(zip(measures, parts, strict=True))
        groups.append(Group(kind=kind, name=name, objects=len(rows), cases=len(own), **shown_by))

    for kind, names in _members(objects, several).items():
        for name, rows in names.items():
            drawn = draw(values[rows], [cases[row] for row in rows], generator(seed, kind, name))
            add(kind, name, rows, drawn.means())
            if kind == "dataset":
                datasets.append(drawn)
    add("datasets", "mean over datasets", list(range(len(objects))), _over(datasets).means())
    return tuple(groups)


def _over(datasets: list[Drawn]) -> Drawn:
    """The mean over datasets, of those in which a value is defined."""
    known = [~np.isnan(each.mean) for each in datasets]
    count = np.sum(known, axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.sum([np.nan_to_num(each.mean) for each in datasets], axis=0) / count
        there = np.sum([~np.isnan(each.resampled) for each in datasets], axis=0)
        resampled = np.sum([np.nan_to_num(each.resampled) for each in datasets], axis=0) / there
    return Drawn(mean, resampled, np.sum([each.undefined for each in datasets], axis=0))


def _members(objects: list[list[Score]], several: bool) -> dict[str, dict[str, list[int]]]:
    """Rows of the objects of each group, by kind and name."""
    members: dict[str, dict[str, list[int]]] = {
        "dataset": defaultdict(list),
        "modality": defaultdict(list),
        "size": {name: [] for name, _ in SIZES},
        "label": defaultdict(list),
        "objects": {"all objects": list(range(len(objects)))},
    }
    for row, (first, *_) in enumerate(objects):
        members["dataset"][first.dataset].append(row)
        members["modality"][first.modality].append(row)
        members["size"][size_class(first.voxels)].append(row)
        members["label"][f"{first.dataset}, {first.label}" if several else first.label].append(row)
    for kind in ("dataset", "modality", "label"):
        members[kind] = dict(sorted(members[kind].items()))
    return {kind: {name: rows for name, rows in names.items() if rows} for kind, names in members.items()}


def _reach(dice: NDArray[np.float64], first: int, cases: list, target: float, seed: int) -> Reach:
    """Of Dice by object and click, of which the first column is that after `first` clicks."""
    there = dice >= target
    ever = there.any(axis=1)
    needed = first + np.where(ever, there.argmax(axis=1), dice.shape[1]).astype(float)
    drawn = draw(needed[:, None], cases, generator(seed, "reach", ""))
    return Reach(target, interval(drawn.mean[0], drawn.resampled[:, 0]), float(1 - ever.mean()))
