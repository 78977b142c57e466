"""Reliability of the predicted quality: how far it is from the Dice that is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsam_app.measure.scores import Score

#: Number of bins of the predicted quality, of equal width from 0 to 1.
BINS = 10


@dataclass(frozen=True)
class Bin:
    """Masks whose predicted quality lies in one bin.

    Attributes:
        masks: number of masks.
        predicted, dice: means of the predicted quality and of the Dice.
    """

    masks: int
    predicted: float
    dice: float


@dataclass(frozen=True)
class Reliability:
    """Reliability of a method's predicted quality over all masks after a click.

    Attributes:
        error: expected calibration error: the mean over masks of the difference between predicted quality
            and Dice of their bin (Guo et al., arXiv:1706.04599).
        bins: bins that have masks, by predicted quality.
    """

    error: float
    bins: tuple[Bin, ...]

    @property
    def predicted(self) -> float:
        """Mean predicted quality."""
        return sum(one.masks * one.predicted for one in self.bins) / sum(one.masks for one in self.bins)

    @property
    def dice(self) -> float:
        """Mean Dice."""
        return sum(one.masks * one.dice for one in self.bins) / sum(one.masks for one in self.bins)


def reliability(scores: Sequence[Score]) -> Reliability | None:
    """Return the reliability of a method's scores, or None if it predicts no quality."""
    rows = [(score.quality, score.dice) for score in scores if score.quality is not None and score.click]
    if not rows:
        return None
    predicted, dice = np.array(rows).T
    place = np.clip((predicted * BINS).astype(int), 0, BINS - 1)
    bins = tuple(
        Bin(
            int((place == number).sum()),
            float(predicted[place == number].mean()),
            float(dice[place == number].mean()),
        )
        for number in range(BINS)
        if (place == number).any()
    )
    error = sum(one.masks * abs(one.predicted - one.dice) for one in bins) / len(rows)
    return Reliability(error, bins)
