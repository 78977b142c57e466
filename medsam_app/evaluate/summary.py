"""Summaries of scores: means with intervals, clicks needed for a Dice, and harmful clicks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsam_app.evaluate.bootstrap import Mean, ResampledMeans, draw, generator, interval
from medsam_app.evaluate.reliability import Reliability, reliability
from medsam_app.measure.scores import FalseLabel, Score

#: Numbers of clicks after which means are given.
CLICKS = (1, 2, 3, 5, 10)
#: Dice values for which the number of clicks is counted.
TARGETS = (0.80, 0.85)
#: Size classes: name, and number of voxels below which an object belongs to the class.
SIZES = (("small", 1_000), ("medium", 20_000), ("large", None))
#: An object is spoilt by clicks if its last Dice is this much below its best one.
SPOILT = 0.05
_MEASURES = ("dice", "surface_dice", "hd95")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Means over a group of objects.

    Attributes:
        kind: "dataset", "modality", "size", "label", "objects" (all objects) or "datasets" (mean over
            datasets with equal weights; cases are resampled within their datasets).
        name: the dataset, modality, size class or label; with several datasets, a label is prefixed with its
            dataset.
        objects, cases: number of objects and cases.
        dice: mean by the number of clicks.
        surface_dice, hd95: likewise; empty if not measured.
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
    """Number of clicks needed to reach a Dice.

    Attributes:
        target: the Dice.
        clicks: mean over objects; an object that never reaches the target counts as one click more than were
            made.
        never: share of the objects that never reach it.
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
        clicks: number of clicks per object; 0 for a method that finds labels without prompts. A method that
            starts from the mask it found also has means after 0 clicks.
        groups: datasets, modalities, size classes and labels in this order, then "objects" and "datasets".
        reach: one per target; empty without clicks.
        honoured: share of the objects whose last mask honours all clicks.
        seconds: median time per click, or per label map.
        worse: number of clicks that lowered the mean over all objects.
        spoilt: number of objects that end `SPOILT` or more below their best Dice.
        worst: the spoilt object with the largest loss.
        false_labels: number of labels found in cases that do not have them.
        reliability: how far the predicted quality is from the Dice; None if the method predicts none.
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
    reliability: Reliability | None = None

    def group(self, kind: str, name: str | None = None) -> Group | None:
        """Return the first group of a kind, or the one with a name; None if there is no such group."""
        return next(
            (group for group in self.groups if group.kind == kind and name in (None, group.name)), None
        )


def size_class(voxels: int) -> str:
    """Return the name of an object's size class."""
    return next(name for name, limit in SIZES if limit is None or voxels < limit)


def shown_clicks(clicks: int) -> tuple[int, ...]:
    """Return the numbers in `CLICKS` below the number of clicks made, and that number."""
    return tuple(sorted({*(number for number in CLICKS if number < clicks), clicks}))


def summarise(
    scores: Sequence[Score],
    *,
    shown: Sequence[int] | None = None,
    targets: Sequence[float] = TARGETS,
    false: Sequence[FalseLabel] = (),
    seed: int = 0,
) -> tuple[Summary, ...]:
    """Return one summary per method, in order of first appearance.

    Args:
        scores: objects of one method all have the same clicks: consecutive from 0 or 1, or click 0 alone.
        shown: numbers of clicks after which means are given; None for `shown_clicks`.
        targets: Dice values for which clicks are counted.
        false: labels found in cases that do not have them.
        seed: seed of the resampling; a group's interval depends only on its own objects.
    """
    several = len({score.dataset for score in scores}) > 1
    return tuple(
        _summary(
            method,
            objects,
            shown or shown_clicks(objects[0][-1].click),
            targets,
            sum(label.method == method for label in false),
            seed,
            several,
        )
        for method, objects in objects_by_method(scores).items()
    )


def objects_by_method(scores: Sequence[Score]) -> dict[str, list[list[Score]]]:
    """Return the scores of each object, click by click, by method, in order of first appearance."""
    rows_by_object: dict[str, dict[tuple, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        rows_by_object[score.method][score.object].append(score)
    return {
        method: [sorted(rows, key=lambda row: row.click) for rows in objects.values()]
        for method, objects in rows_by_object.items()
    }


def case_of(rows: Sequence[Score]) -> tuple[str, str, str]:
    """Return the case of an object, the unit of resampling."""
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
        reliability=reliability([score for rows in objects for score in rows]),
    )


def _timed(score: Score, rows: Sequence[Score]) -> bool:
    """Return whether a score's time counts towards the median time per click."""
    return score.seconds is not None and (score.click > 0 or rows[-1].click == 0)


def _spoilt(rows: list[Score], dice: NDArray[np.float64]) -> Spoilt:
    first = rows[0]
    return Spoilt(first.dataset, first.case, first.label, best=float(dice.max()), last=float(dice[-1]))


def _groups(objects: list[list[Score]], shown: Sequence[int], seed: int, several: bool) -> tuple[Group, ...]:
    shown_rows = [[row for row in rows if row.click in shown] for rows in objects]
    numbers = [row.click for row in shown_rows[0]]
    surfaces = any(row.surface_dice is not None for row in shown_rows[0])
    measures = _MEASURES if surfaces else _MEASURES[:1]
    values = np.array(
        [[getattr(row, name) for name in measures for row in rows] for rows in shown_rows], dtype=np.float64
    )
    cases = [case_of(rows) for rows in objects]
    groups: list[Group] = []
    datasets: list[ResampledMeans] = []

    def add(kind: str, name: str, rows: list[int], means: list[Mean]) -> None:
        count = len(numbers)
        means_by_click = [dict(zip(numbers, means[n * count :], strict=False)) for n in range(len(measures))]
        group_cases = {cases[row] for row in rows}
        fields = dict(zip(measures, means_by_click, strict=True))
        groups.append(Group(kind=kind, name=name, objects=len(rows), cases=len(group_cases), **fields))

    for kind, names in _members(objects, several).items():
        for name, rows in names.items():
            resampled = draw(values[rows], [cases[row] for row in rows], generator(seed, kind, name))
            add(kind, name, rows, resampled.means())
            if kind == "dataset":
                datasets.append(resampled)
    add("datasets", "mean over datasets", list(range(len(objects))), _over_datasets(datasets).means())
    return tuple(groups)


def _over_datasets(datasets: list[ResampledMeans]) -> ResampledMeans:
    """Return the mean over the datasets in which a value is defined."""
    known = [~np.isnan(dataset.mean) for dataset in datasets]
    count = np.sum(known, axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.sum([np.nan_to_num(dataset.mean) for dataset in datasets], axis=0) / count
        defined = np.sum([~np.isnan(dataset.resampled) for dataset in datasets], axis=0)
        resampled = np.sum([np.nan_to_num(dataset.resampled) for dataset in datasets], axis=0) / defined
    return ResampledMeans(mean, resampled, np.sum([dataset.undefined for dataset in datasets], axis=0))


def _members(objects: list[list[Score]], several: bool) -> dict[str, dict[str, list[int]]]:
    """Return the rows of the objects of each group, by kind and name."""
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
    """Return the clicks to a target, from Dice by object and click; column 0 is after `first` clicks."""
    reached = dice >= target
    ever_reached = reached.any(axis=1)
    needed = first + np.where(ever_reached, reached.argmax(axis=1), dice.shape[1]).astype(float)
    resampled = draw(needed[:, None], cases, generator(seed, "reach", ""))
    return Reach(
        target, interval(resampled.mean[0], resampled.resampled[:, 0]), float(1 - ever_reached.mean())
    )
