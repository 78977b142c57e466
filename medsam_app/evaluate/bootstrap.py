"""Means with confidence intervals by resampling cases.

Objects of one case are not independent: a difficult scan is difficult for all of its objects. The bootstrap
therefore draws whole cases, each with all of its objects.
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
    """A mean and its 95 % interval: percentiles of the means of resampled cases.

    Attributes:
        value, low, high: None if no object has a value.
        undefined: number of objects without a value; the mean is over the remaining objects.
    """

    value: float | None
    low: float | None
    high: float | None
    undefined: int = 0


class ResampledMeans(NamedTuple):
    """Mean (columns,), resampled means (RESAMPLES, columns) and number of undefined values (columns,)."""

    mean: NDArray[np.float64]
    resampled: NDArray[np.float64]
    undefined: NDArray[np.int64]

    def means(self) -> list[Mean]:
        """Return one mean per column."""
        return [
            interval(value, resampled, int(count))
            for value, resampled, count in zip(self.mean, self.resampled.T, self.undefined, strict=True)
        ]


def draw(values: NDArray[np.float64], cases: Sequence[Hashable], rng: np.random.Generator) -> ResampledMeans:
    """Return means over objects, for the data and for resampled cases.

    Args:
        values: (objects, columns); NaN, undefined, is ignored.
        cases: (objects,) case of each object. Cases are drawn with replacement, each with all of its objects.
        rng: random generator of the resampling.
    """
    numbers: dict[Hashable, int] = {}
    case_index = np.array([numbers.setdefault(case, len(numbers)) for case in cases])
    known = ~np.isnan(values)
    sums, counts = np.zeros((2, len(numbers), values.shape[1]))
    np.add.at(sums, case_index, np.where(known, values, 0.0))
    np.add.at(counts, case_index, known)
    draws = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RESAMPLES)
    with np.errstate(invalid="ignore"):  # where nothing is defined
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        resampled = (draws @ sums) / (draws @ counts)
    return ResampledMeans(mean, resampled, (~known).sum(axis=0))


def interval(value: float, resampled: NDArray[np.float64], undefined: int = 0) -> Mean:
    """Return a mean with the 2.5 and 97.5 percentiles of the defined resampled means."""
    if np.isnan(value):
        return Mean(None, None, None, undefined)
    low, high = np.percentile(resampled[~np.isnan(resampled)], [2.5, 97.5])
    return Mean(float(value), float(low), float(high), undefined)


def generator(seed: int, *subject: str) -> np.random.Generator:
    """Return an independent random generator per subject."""
    return np.random.default_rng([seed, zlib.crc32("/".join(subject).encode())])
