"""Two methods on the same objects: by how much one is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsam_app.evaluate.bootstrap import Mean, draw, generator
from medsam_app.evaluate.summary import case_of, objects_by_method
from medsam_app.measure.scores import Score


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Dice of a method less that of another one.

    Attributes:
        objects, cases: those that both were measured on.
        dice: mean of the differences by the number of clicks. The interval is a paired bootstrap: cases are
            drawn, each with the differences of all its objects.
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
    """The differences of pairs of methods, of which those without an object in common are left out.

    Args:
        scores: as for `summarise`.
        pairs: (method, against).
        shown: after which clicks.
        seed: of the resampling.
    """
    measured = {
        method: {rows[0].object: rows for rows in objects}
        for method, objects in objects_by_method(scores).items()
    }
    found = []
    for method, against in pairs:
        ours, theirs = measured.get(method, {}), measured.get(against, {})
        common = [each for each in ours if each in theirs]
        if not common:
            continue
        cases = [case_of(ours[each]) for each in common]
        values = np.array([_dice(ours[each], shown) - _dice(theirs[each], shown) for each in common])
        means = draw(values, cases, generator(seed, "comparison", method, against)).means()
        found.append(
            Comparison(
                method=method,
                against=against,
                objects=len(common),
                cases=len(set(cases)),
                dice=dict(zip(shown, means, strict=True)),
            )
        )
    return tuple(found)


def _dice(rows: Sequence[Score], shown: Sequence[int]) -> np.ndarray:
    """Return the Dice after the listed clicks; for a method without clicks its only one."""
    by_click = {row.click: row.dice for row in rows}
    return np.array([by_click.get(click, by_click.get(0, np.nan)) for click in shown])
