"""Means with intervals, from cases that are drawn again and again.

Objects of one case are not independent: a scan that is hard is hard for all of them. So cases are drawn,
each with all of its objects.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval: the percentiles of the means of resampled cases.

    Attributes:
        value, low, high: None where nothing is defined.
        undefined: how many objects have no value; the mean is of the others.
    """

    value: float | None
    low: float | None
    high: float | None
    undefined: int = 0


class Drawn(NamedTuple):
    """Means of values: (columns,) as they are, (RESAMPLES, columns) of drawn cases, (columns,) undefined."""

    mean: NDArray[np.float64]
    resampled: NDArray[np.float64]
    undefined: NDArray[np.int64]

    def means(self) -> list[Mean]:
        """One a column."""
        return [
            interval(value, drawn, int(count))
            for value, drawn, count in zip(self.mean, self.resampled.T, self.undefined, strict=True)
        ]


def draw(values: NDArray[np.float64], cases: Sequence[Hashable], rng: np.random.Generator) -> Drawn:
    """Means over objects, of the objects and of resampled cases.

    Args:
        values: (objects, columns), NaN where undefined, which counts for nothing.
        cases: (objects,) the case of each; drawn with replacement, each with all its objects.
        rng: who draws.
    """
    order: dict[Hashable, int] = {}
    of = np.array([order.setdefault(case, len(order)) for case in cases])
    known = ~np.isnan(values)
    sums, counts = np.zeros((2, len(order), values.shape[1]))
    np.add.at(sums, of, np.where(known, values, 0.0))
    np.add.at(counts, of, known)
    times = rng.multinomial(len(order), np.full(len(order), 1 / len(order)), size=RESAMPLES)
    with np.errstate(invalid="ignore"):  # where nothing is defined
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        resampled = (times @ sums) / (times @ counts)
    return Drawn(mean, resampled, (~known).sum(axis=0))


def interval(value: float, resampled: NDArray[np.float64], undefined: int = 0) -> Mean:
    """A mean with the 2.5 and 97.5 percentiles of the resampled ones that are defined."""
    if np.isnan(value):
        return Mean(None, None, None, undefined)
    low, high = np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5])
    return Mean(float(value), float(low), float(high), undefined)


def generator(seed: int, *about: str) -> np.random.Generator:
    """Return an independent random generator for each unit."""
    return np.random.default_rng([seed, zlib.crc32("/".join(about).encode())])
