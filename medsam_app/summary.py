"""What many scores come to: means with intervals, clicks that it takes, and where clicks do harm."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam_app.scores import Score

#: Clicks after which means are given.
CLICKS = (1, 2, 3, 5, 10)
#: Dice values whose number of clicks is counted.
TARGETS = (0.80, 0.85)
#: Classes of size: name and number of voxels below which an object belongs to it.
SIZES = (("small", 1_000), ("medium", 20_000), ("large", None))
RESAMPLES = 2000
#: An object whose last mask is this much below its best one was spoilt by clicks.
SPOILT = 0.05


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval: the percentiles of the means of resampled objects."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Mean Dice of some objects.

    Attributes:
        kind: "dataset", "modality", "size", "objects" (all of them) or "datasets" (the mean over datasets,
            each weighing the same; its objects are resampled within their datasets).
        name: which dataset, modality or class of size.
        objects: how many.
        dice: by the number of clicks.
    """

    kind: str
    name: str
    objects: int
    dice: dict[int, Mean]


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
    """What one method scored.

    Attributes:
        groups: datasets, modalities and classes of size in this order, then "objects" and "datasets".
        reach: for each of `TARGETS`.
        honoured: share of the objects whose last mask honours all clicks.
        seconds: median time of a click.
        worse: after how many of the clicks the mean over all objects was lower than before.
        spoilt: objects that end `SPOILT` or more below their own best.
        worst: the one of these that lost most.
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


def size_class(voxels: int) -> str:
    """Name of the class of size of an object."""
    return next(name for name, limit in SIZES if limit is None or voxels < limit)


def resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(RESAMPLES, columns) means of the rows of (objects, columns) values, drawn with replacement."""
    count = len(values)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn @ values / count


def summarise(scores: Sequence[Score], *, seed: int = 0) -> tuple[Summary, ...]:
    """One summary a method, in the order in which they come.

    Args:
        scores: each object with the same clicks, from 1 on without a gap.
        seed: of the resampling; a group's interval depends on its own objects alone.
    """
    by_method: dict[str, dict[tuple, list[Score]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        by_method[score.method][score.object].append(score)
    return tuple(
        _summary(method, [sorted(rows, key=lambda row: row.click) for rows in objects.values()], seed)
        for method, objects in by_method.items()
    )


def _summary(method: str, objects: list[list[Score]], seed: int) -> Summary:
    dice = np.array([[score.dice for score in rows] for rows in objects])
    clicks = dice.shape[1]
    drops = dice.max(axis=1) - dice[:, -1]
    steps = np.diff(dice.mean(axis=0))
    worst = int(drops.argmax())
    spoilt = int((drops >= SPOILT).sum())
    return Summary(
        method=method,
        clicks=clicks,
        groups=_groups(objects, dice, seed),
        reach=tuple(_reach(dice, target, seed) for target in TARGETS),
        honoured=float(np.mean([rows[-1].unmet == 0 for rows in objects])),
        seconds=float(np.median([s.seconds for rows in objects for s in rows if s.seconds is not None])),
        worse=int((steps < 0).sum()),
        spoilt=spoilt,
        worst=_spoilt(objects[worst], dice[worst]) if spoilt else None,
    )


def _spoilt(rows: list[Score], dice: NDArray[np.float64]) -> Spoilt:
    first = rows[0]
    return Spoilt(first.dataset, first.case, first.label, best=float(dice.max()), last=float(dice[-1]))


def _groups(objects: list[list[Score]], dice: NDArray[np.float64], seed: int) -> tuple[Group, ...]:
    shown = [n for n in CLICKS if n <= dice.shape[1]]
    values = dice[:, [n - 1 for n in shown]]
    groups: list[Group] = []
    means, resampled = [], []

    def add(kind: str, name: str, count: int, mean: NDArray, drawn: NDArray) -> None:
        intervals = [_interval(*each) for each in zip(mean, drawn.T, strict=True)]
        groups.append(Group(kind, name, count, dict(zip(shown, intervals, strict=True))))

    for kind, names in _members(objects).items():
        for name, rows in names.items():
            own = values[rows]
            drawn = resampled_means(own, _rng(seed, kind, name))
            add(kind, name, len(rows), own.mean(axis=0), drawn)
            if kind == "dataset":
                means.append(own.mean(axis=0))
                resampled.append(drawn)
    add("datasets", "mean over datasets", len(objects), np.mean(means, axis=0), np.mean(resampled, axis=0))
    return tuple(groups)


def _members(objects: list[list[Score]]) -> dict[str, dict[str, list[int]]]:
    """Rows of the objects of each group, by kind and name."""
    members: dict[str, dict[str, list[int]]] = {
        "dataset": defaultdict(list),
        "modality": defaultdict(list),
        "size": {name: [] for name, _ in SIZES},
        "objects": {"all objects": list(range(len(objects)))},
    }
    for row, (first, *_) in enumerate(objects):
        members["dataset"][first.dataset].append(row)
        members["modality"][first.modality].append(row)
        members["size"][size_class(first.voxels)].append(row)
    for kind in ("dataset", "modality"):
        members[kind] = dict(sorted(members[kind].items()))
    return {kind: {name: rows for name, rows in names.items() if rows} for kind, names in members.items()}


def _reach(dice: NDArray[np.float64], target: float, seed: int) -> Reach:
    there = dice >= target
    ever = there.any(axis=1)
    needed = np.where(ever, there.argmax(axis=1) + 1, dice.shape[1] + 1).astype(float)
    drawn = resampled_means(needed[:, None], _rng(seed, "reach", ""))
    return Reach(target, _interval(float(needed.mean()), drawn[:, 0]), float(1 - ever.mean()))


def _interval(value: float, resampled: NDArray[np.float64]) -> Mean:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Mean(float(value), float(low), float(high))


def _rng(seed: int, kind: str, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{kind}/{name}".encode())])
