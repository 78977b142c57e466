"""The baselines on objects that are easy, and what they do with clicks and boxes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from medsam_app.classical import BASELINES, Classical, ConfidenceConnected, RandomWalker, baseline, untrained
from medsam_app.cli_evaluate import evaluate
from medsam_app.errors import PromptError, SettingsError
from medsam_app.measuring import click_through
from medsam_app.scores import dice
from medsam_app.volume import Volume
from tests.evaluation_data import ball, two_balls

CLASSICAL = [RandomWalker, ConfidenceConnected]


@pytest.fixture(scope="module")
def volume() -> Volume:
    image, _, affine = two_balls()
    return Volume.from_array(image, affine)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return two_balls()[1] == 1


def on(method: type[Classical], volume: Volume) -> Classical:
    made = method()
    made.set_volume(volume)
    return made


@pytest.mark.parametrize("name", list(BASELINES))
def test_easy_objects_are_found(name: str, volume: Volume, truth: np.ndarray) -> None:
    method = baseline(name, device="cpu", refine=False, seed=0)
    method.set_volume(volume)
    steps = list(click_through(method, truth, clicks=1))
    assert steps[0].dice > 0.8 and steps[0].unmet == 0
    box = ((4, 10, 6), (20, 26, 14))
    assert next(click_through(method, truth, clicks=1, box=box)).dice > 0.8


@pytest.mark.parametrize("method", CLASSICAL)
def test_nothing_lies_outside_a_box(method: type[Classical], volume: Volume, truth: np.ndarray) -> None:
    box = ((4, 10, 6), (12, 26, 14))
    mask = on(method, volume).predict(boxes=[box], points=[(10, 18, 10)]).mask
    within = np.zeros_like(mask)
    within[4:13, 10:27, 6:15] = True
    assert not (mask & ~within).any()
    assert dice(mask, truth & within) > 0.8


@pytest.mark.parametrize("method", CLASSICAL)
def test_clicks_in_another_object_add_it_and_take_it_away(method: type[Classical]) -> None:
    """A dumbbell of two balls joined by a bar: a negative click takes one ball's part."""
    first, second = ball((11, 18, 20), 7), ball((28, 18, 20), 7)
    dumbbell = first | second
    dumbbell[11:28, 16:21, 9:12] = True
    image = dumbbell * 100.0 + np.random.default_rng(0).normal(size=dumbbell.shape)
    segmenter = on(method, Volume.from_array(image.astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0])))
    points = [(11, 18, 10), (28, 18, 10)]
    whole = segmenter.predict(points=points).mask
    assert dice(whole, dumbbell) > 0.9
    half = segmenter.predict(points=points, point_labels=[1, 0]).mask
    assert (half & first).sum() > 0.8 * first.sum() and (half & second).sum() < 0.1 * second.sum()
    again = segmenter.predict(points=points).mask
    np.testing.assert_array_equal(whole, again)  # nothing of the prompts before is left


def test_a_far_click_is_seen_too() -> None:
    """Two bars 150 mm apart, in a window that shows 96 mm at first."""
    image = np.zeros((200, 24, 24), dtype=np.float32)
    image[10:30, 8:16, 8:16] = image[170:190, 8:16, 8:16] = 100
    image += np.random.default_rng(0).normal(size=image.shape)
    segmenter = on(ConfidenceConnected, Volume.from_array(image.astype(np.float32), np.eye(4)))
    one = segmenter.predict(points=[(20, 12, 12)]).mask
    both = segmenter.predict(points=[(20, 12, 12), (180, 12, 12)]).mask
    assert one[20, 12, 12] and not one[100:].any()
    assert both[20, 12, 12] and both[180, 12, 12]
    assert dice(both, image > 50) > 0.6  # the window is coarse now


def test_fresh_weights_have_their_seed(volume: Volume) -> None:
    first, same, other = (
        untrained(device="cpu", seed=seed).model.state_dict()["decoder.mask_tokens"] for seed in (0, 0, 1)
    )
    assert bool((first == same).all()) and not bool((first == other).any())


@pytest.mark.parametrize("method", CLASSICAL)
@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({}, "give a positive click or a box"),
        ({"points": [(1, 2, 3)], "point_labels": [0]}, "give a positive click or a box"),
        ({"points": [(1, 2, 300)]}, "lies outside the image"),
        ({"boxes": [((1, 1, 1), (5, 5, 5))] * 2}, "takes one box; got 2"),
    ],
)
def test_mistakes(method: type[Classical], volume: Volume, prompts: dict, said: str) -> None:
    with pytest.raises(PromptError, match="No volume is set"):
        method().predict(**prompts)
    with pytest.raises(PromptError) as raised:
        on(method, volume).predict(**prompts)
    assert said in str(raised.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(SettingsError, match="needs scikit-image, which is not installed"):
        baseline("walker", device="cpu", refine=False, seed=0)


def test_help_names_every_baseline() -> None:
    said = str(evaluate.__annotations__["baseline"])
    assert all(f"{name} (" in said for name in BASELINES)
