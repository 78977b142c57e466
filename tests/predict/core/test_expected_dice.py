"""The number shown to users: a calibrated function of the predicted quality, where the model has one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medsam_app.grid.masks import dice
from medsam_app.predict.core.expected_dice import CALIBRATIONS, Calibration
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import MaskPrompt, Point
from medsam_app.synthetic.torso import torso_phantom

PLAIN = Calibration(constant=0.5, quality=1.0, prompts=0.3, again=-2.0, agreement=2.5, box=0.25)


def test_it_is_the_logistic_function_of_its_features() -> None:
    expected = PLAIN.expected(0.8, prompts=3, agreement=0.9, box=True)
    total = 0.5 + math.log(0.8 / 0.2) + 0.3 * math.log(3) - 2 + 2.5 * 0.9 + 0.25
    assert expected == pytest.approx(1 / (1 + math.exp(-total)))
    first = PLAIN.expected(0.8, prompts=1, agreement=None, box=False)
    assert first == pytest.approx(1 / (1 + math.exp(-(0.5 + math.log(4)))))
    for quality in (0.0, 1.0):
        assert 0 < PLAIN.expected(quality, prompts=1, agreement=None, box=False) < 1


@pytest.mark.parametrize("name", list(CALIBRATIONS))
def test_a_better_prediction_or_a_settled_mask_is_expected_to_be_better(name: str) -> None:
    used = CALIBRATIONS[name]
    for prompts, agreement in ((1, None), (5, 0.9)):
        values = [
            used.expected(q, prompts=prompts, agreement=agreement, box=False) for q in np.linspace(0, 1, 11)
        ]
        assert values == sorted(values)
    changing, settled = (used.expected(0.7, prompts=4, agreement=a, box=False) for a in (0.3, 0.98))
    assert changing < settled


@pytest.mark.slow
def test_predictions_show_it_and_given_masks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, labels, _ = torso_phantom()
    predictor = VolumePredictor("sam3d_tiny", device="cpu", refine=False)
    predictor.set_volume(volume)
    i, j, k = np.argwhere(labels == 1)[20_000].tolist()
    prompts = [Point(coordinates=(i, j, k)), Point(coordinates=(5, 5, 5), positive=False)]
    monkeypatch.delitem(CALIBRATIONS, "sam3d_tiny", raising=False)
    raw = [predictor.predict_prompts(prompts[:n]) for n in (1, 2)]
    monkeypatch.setitem(CALIBRATIONS, "sam3d_tiny", PLAIN)
    shown = [predictor.predict_prompts(prompts[:n]).score for n in (1, 2)]
    agreement = dice(raw[0].mask, raw[1].mask)
    assert shown == [
        pytest.approx(PLAIN.expected(raw[0].score, prompts=1, agreement=None, box=False)),
        pytest.approx(PLAIN.expected(raw[1].score, prompts=2, agreement=agreement, box=False)),
    ]
    assert predictor.predict_prompts([MaskPrompt.from_array(labels == 1)]).score == 1.0
