"""Reliability of predicted quality on scores whose error is known."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.evaluate import plots
from medsam_app.evaluate.reliability import reliability
from medsam_app.measure.scores import Score


def scores(predicted: list[float | None], dice: list[float], click: int = 1) -> list[Score]:
    pairs = zip(predicted, dice, strict=True)
    return [Score("m", "d", "CT", "c", "l", 1, 200, click, real, found, 0, 1.0) for found, real in pairs]


def test_the_error_is_the_mean_distance_of_the_bins() -> None:
    # Two bins: 0.25 predicted and 0.45 reached (3 masks), 0.95 predicted and 0.85 reached (1 mask).
    found = reliability(scores([0.2, 0.25, 0.29, 0.95], [0.4, 0.45, 0.49, 0.85]))
    assert found is not None and [one.masks for one in found.bins] == [3, 1]
    distance = np.mean([0.4, 0.45, 0.49]) - np.mean([0.2, 0.25, 0.29])
    assert found.error == pytest.approx((3 * distance + 0.1) / 4)
    assert found.predicted == pytest.approx(np.mean([0.2, 0.25, 0.29, 0.95]))
    assert found.dice == pytest.approx(np.mean([0.4, 0.45, 0.49, 0.85]))
    assert plots.reliability_curves({"m": found}).startswith(b"\x89PNG")


def test_right_on_average_within_a_bin_is_no_error() -> None:
    found = reliability(scores([0.65, 0.65, 1.0], [0.3, 1.0, 1.0]))
    assert found is not None and found.error == pytest.approx(0)


def test_methods_without_a_prediction_and_masks_without_a_click_do_not_count() -> None:
    assert reliability(scores([None, None], [0.3, 0.4])) is None
    assert reliability(scores([0.5], [0.3], click=0)) is None
