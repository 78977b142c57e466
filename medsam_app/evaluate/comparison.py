"""Paired comparison of two methods on the same objects, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsam_app.evaluate.bootstrap import Mean, draw, generator
from medsam_app.evaluate.summary import case_of, objects_by_method
from medsam_app.measure.scores import Score


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Dice of one method minus the Dice of another.

    Attributes:
        objects, cases: number of objects and cases measured with both methods.
        dice: mean difference by the number of clicks. Its interval is a paired bootstrap over cases, each
            drawn with the differences of all its objects.
    """

    method: str
    against: str
    objects: int
    cases: int
    dice: dict[int, Mean]


def compare(
    scores: Sequence[Score],
    pairs: Sequence[tuple[str, str]],
    *,
    shown: Sequence[int],
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Return the differences of pairs of methods; a pair without common objects is left out.

    Args:
        scores: as for `summarise`.
        pairs: (method, against).
        shown: numbers of clicks after which differences are given.
        seed: seed of the resampling.
    """
    measured = {
        method: {rows[0].object: rows for rows in objects}
        for method, objects in objects_by_method(scores).items()
    }
    comparisons = []
    for method, against in pairs:
        first, second = measured.get(method, {}), measured.get(against, {})
        common = [key for key in first if key in second]
        if not common:
            continue
        cases = [case_of(first[key]) for key in common]
        values = np.array([_dice(first[key], shown) - _dice(second[key], shown) for key in common])
        means = draw(values, cases, generator(seed, "comparison", method, against)).means()
        comparisons.append(
            Comparison(
                method=method,
                against=against,
                objects=len(common),
                cases=len(set(cases)),
                dice=dict(zip(shown, means, strict=True)),
            )
        )
    return tuple(comparisons)


def _dice(rows: Sequence[Score], shown: Sequence[int]) -> np.ndarray:
    """Return the Dice after the listed clicks; a method without clicks has a single Dice for all of them."""
    by_click = {row.click: row.dice for row in rows}
    return np.array([by_click.get(click, by_click.get(0, np.nan)) for click in shown])
