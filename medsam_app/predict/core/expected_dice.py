"""Expected Dice of a mask: the number shown to users.

The quality head was trained on single windows and hardly knows how many clicks have been made. The expected
Dice is a logistic function of its prediction, of the number of prompts, and of how much the last prompt has
changed the mask: a mask that no longer changes is usually right. The coefficients are fitted on `train` cases
by `benchmarks/calibration.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Predicted qualities closer to 0 and 1 than this are treated alike.
_EDGE = 0.01


@dataclass(frozen=True)
class Calibration:
    """Coefficients of the logistic function.

    Attributes:
        constant: of all masks.
        quality: of the logit of the predicted quality.
        prompts: of the logarithm of the number of prompts.
        again: of masks after a further prompt.
        agreement: of the Dice with the mask before the last prompt; 0 for a first prompt.
        box: of masks whose first prompt is a box.
    """

    constant: float
    quality: float
    prompts: float
    again: float
    agreement: float
    box: float

    def expected(self, quality: float, *, prompts: int, agreement: float | None, box: bool) -> float:
        """Return the expected Dice.

        Args:
            quality: predicted quality in [0, 1].
            prompts: number of clicks and boxes so far.
            agreement: Dice with the mask before the last prompt; None for a first prompt.
            box: whether there is a box among the prompts.
        """
        values = features(quality, prompts=prompts, agreement=agreement, box=box)
        weights = (self.constant, self.quality, self.prompts, self.again, self.agreement, self.box)
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        return 1 / (1 + math.exp(-total))


def features(
    quality: float, *, prompts: int, agreement: float | None, box: bool
) -> tuple[float, float, float, float, float, float]:
    """Return what the coefficients are multiplied with; see `Calibration.expected`."""
    clipped = min(max(quality, _EDGE), 1 - _EDGE)
    return (
        1.0,
        math.log(clipped / (1 - clipped)),
        math.log(max(prompts, 1)),
        float(agreement is not None),
        agreement or 0.0,
        float(box),
    )


#: By name of the model; other models, and models with an adapter, show the predicted quality unchanged.
CALIBRATIONS: dict[str, Calibration] = {
    "sam3d_medsam": Calibration(
        constant=-0.33, quality=1.01, prompts=0.11, again=-0.71, agreement=1.46, box=0.08
    ),
    "sam3d_tiny": Calibration(
        constant=-0.21, quality=1.15, prompts=0.30, again=-0.96, agreement=1.18, box=0.13
    ),
}
