"""Baselines on easy objects, and their response to clicks and boxes."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.cli.evaluate import evaluate
from medsam_app.errors import PromptError
from medsam_app.evaluate.classical import (
    BASELINES,
    Classical,
    ConfidenceConnected,
    RandomWalker,
    baseline,
    untrained,
)
from medsam_app.evaluate.click_through import click_through
from medsam_app.grid.masks import dice
from medsam_app.io.volume import Volume
from tests.support.evaluation_data import two_balls

CLASSICAL = [RandomWalker, ConfidenceConnected]


@pytest.fixture(scope="module")
def volume() -> Volume:
    image, _, affine = two_balls()
    return Volume.from_array(image, affine)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return two_balls()[1] == 1


def with_volume(method: type[Classical], volume: Volume) -> Classical:
    segmenter = method()
    segmenter.set_volume(volume)
    return segmenter


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BASELINES))
def test_easy_objects_are_found(name: str, volume: Volume, truth: np.ndarray) -> None:
    method = baseline(name, device="cpu", refine=False, seed=0)
    method.set_volume(volume)
    steps = list(click_through(method, truth, clicks=2))
    assert steps[-1].dice > 0.75 and [step.unmet for step in steps] == [0, 0]
    box = ((4, 10, 6), (20, 26, 14))
    boxed = list(click_through(method, truth, clicks=2, box=box))
    assert boxed[0].dice > 0.65 and boxed[1].dice > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("method", CLASSICAL)
def test_nothing_lies_outside_a_box(method: type[Classical], volume: Volume) -> None:
    box = ((4, 10, 6), (12, 26, 14))
    mask = with_volume(method, volume).predict(boxes=[box], points=[(9, 18, 10)]).mask
    within = np.zeros_like(mask)
    within[3:14, 8:29, 5:16] = True  # the box enlarged by a tenth of its size
    assert mask[9, 18, 10] and not (mask & ~within).any()
    middle = with_volume(method, volume).predict(boxes=[box]).mask
    np.testing.assert_array_equal(
        middle, with_volume(method, volume).predict(boxes=[box], points=[(8, 18, 10)]).mask
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", CLASSICAL)
def test_a_negative_click_removes_its_part(method: type[Classical]) -> None:
    """Segment two balls joined by a bar: a negative click in the second ball removes it."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (48, 32, 32)], indexing="ij"), axis=-1)
    first, second = (np.linalg.norm(grid - (i, 16, 16), axis=-1) < 8 for i in (12, 35))
    truth = first | second
    truth[12:35, 12:21, 12:21] = True
    image = 100.0 * truth + 10.0 * np.random.default_rng(0).normal(size=truth.shape)
    segmenter = with_volume(method, Volume.from_array(image.astype(np.float32), np.eye(4)))
    segmenter.SIDE = 32 if method is RandomWalker else 64  # faster
    one = segmenter.predict(points=[(12, 16, 16)]).mask
    assert dice(one, truth) > 0.75 and one[35, 16, 16]
    remaining = segmenter.predict(points=[(12, 16, 16), (35, 16, 16)], point_labels=[1, 0]).mask
    assert (remaining & first).sum() > 0.6 * first.sum() and (remaining & second).sum() < 0.1 * second.sum()
    # Earlier prompts have no effect.
    np.testing.assert_array_equal(segmenter.predict(points=[(12, 16, 16)]).mask, one)


@pytest.mark.slow
@pytest.mark.parametrize("method", CLASSICAL)
def test_the_window_holds_all_clicks(method: type[Classical]) -> None:
    """Segment two bars 100 mm apart, in a window that initially covers 96 mm."""
    image = np.zeros((200, 24, 24), dtype=np.float32)
    image[10:50, 4:20, 4:20] = image[150:190, 4:20, 4:20] = 100
    image += 3 * np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    segmenter = with_volume(method, Volume.from_array(image, np.eye(4)))
    one = segmenter.predict(points=[(30, 12, 12)]).mask
    assert one[30, 12, 12] and not one[100:].any()
    both = segmenter.predict(points=[(30, 12, 12), (170, 12, 12)]).mask
    assert both[30, 12, 12] and both[170, 12, 12] and dice(both, image > 50) > 0.6


def test_fresh_weights_have_their_seed(volume: Volume) -> None:
    first, same, other = (
        untrained(device="cpu", seed=seed).model.state_dict()["decoder.mask_tokens"] for seed in (0, 0, 1)
    )
    assert bool((first == same).all()) and not bool((first == other).any())


@pytest.mark.parametrize("method", CLASSICAL)
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "give a positive click or a box"),
        ({"points": [(1, 2, 3)], "point_labels": [0]}, "give a positive click or a box"),
        ({"points": [(1, 2, 300)]}, "lies outside the image"),
        ({"boxes": [((1, 1, 1), (5, 5, 5))] * 2}, "takes one box; got 2"),
    ],
)
def test_invalid_prompts(method: type[Classical], volume: Volume, prompts: dict, message: str) -> None:
    with pytest.raises(PromptError, match="No volume is set"):
        method().predict(**prompts)
    with pytest.raises(PromptError) as raised:
        with_volume(method, volume).predict(**prompts)
    assert message in str(raised.value)


def test_help_names_every_baseline() -> None:
    help_text = str(evaluate.__annotations__["baseline"])
    assert all(f"{name} (" in help_text for name in BASELINES)
