"""The measurement itself, on objects whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.evaluate import click_through, dice, evaluate_case
from medsam_app.predictor import VolumePredictor
from medsam_app.volume import Volume


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(device="cpu")


def _balls() -> tuple[Volume, np.ndarray]:
    """Two bright balls and a speck in noise, oblique and anisotropic."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (48, 40, 24)], indexing="ij"), -1) * (1.0, 1.0, 2.0)
    labels = np.zeros((48, 40, 24), dtype=np.uint8)
    labels[np.linalg.norm(grid - (14, 20, 24), axis=-1) < 9] = 1
    labels[np.linalg.norm(grid - (36, 20, 24), axis=-1) < 7] = 2
    labels[0:2, 0:2, 0:2] = 3
    image = np.choose(labels, [0, 300, 500, 900]) + rng.normal(size=labels.shape) * 20
    turn = np.array([[0.9, -0.43589, 0.0], [0.43589, 0.9, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.0, 2.0])
    return Volume.from_array(image.astype(np.int16), affine), labels


def test_dice_of_known_masks() -> None:
    a, b = np.zeros((4, 4, 4), dtype=bool), np.zeros((4, 4, 4), dtype=bool)
    assert dice(a, b) == 1.0
    a[0] = True
    assert dice(a, b) == 0.0
    b[0, :2] = True
    assert dice(a, b) == pytest.approx(2 * 8 / 24)


def test_objects_are_clicked_and_small_ones_counted(predictor: VolumePredictor) -> None:
    volume, labels = _balls()
    scores, small = evaluate_case(predictor, volume, labels, clicks=3, names={1: "large"})
    assert small == 1
    assert [(s.label, s.click) for s in scores] == [(n, c) for n in ("large", "2") for c in (1, 2, 3)]
    assert all(s.unmet == 0 for s in scores)
    assert min(s.dice for s in scores if s.click == 3) > 0.8


def test_a_perfect_mask_needs_no_more_clicks(predictor: VolumePredictor) -> None:
    volume, _ = _balls()
    predictor.set_volume(volume)
    truth = predictor.predict(points=[(14, 20, 12)]).mask
    rows = list(click_through(predictor, truth, clicks=3))
    assert len(rows) == 3
