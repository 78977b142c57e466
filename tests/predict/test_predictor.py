"""Predictor: masks on the file's own grid, identical for identical prompts."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.errors import PromptError
from medsam_app.grid.patch import box_slices
from medsam_app.io.volume import Volume
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import Box, MaskPrompt, Point


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(device="cpu")


def ball(
    shape: tuple[int, int, int], centre: tuple[float, ...], radius: float, affine: np.ndarray
) -> tuple[Volume, np.ndarray]:
    """Return a noisy volume with a bright ball that is round in mm, and the ball's mask."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    truth = np.linalg.norm((voxels - centre) * spacing, axis=-1) < radius
    noise = np.random.default_rng(0).normal(size=shape) * 15
    return Volume.from_array((truth * 200 + noise).astype(np.int16), affine), truth


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def _oblique(spacing: tuple[float, float, float]) -> np.ndarray:
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (10, 20, 30)
    return affine


GRIDS = {
    "ras": ((48, 48, 48), np.eye(4)),
    "lps": ((48, 48, 48), np.diag([-1.0, -1.0, 1.0, 1.0])),
    "permuted": ((48, 40, 44), np.eye(4)[[2, 0, 1, 3]]),
    "thick slices": ((96, 96, 16), np.diag([0.6, 0.6, 5.0, 1.0])),
    "oblique": ((60, 56, 30), _oblique((0.9, 0.8, 2.0))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_ball_is_found_on_any_grid(predictor: VolumePredictor, name: str) -> None:
    shape, affine = GRIDS[name]
    centre = tuple(n // 2 - 2 for n in shape)
    volume, truth = ball(shape, centre, 11.0, affine)
    predictor.set_volume(volume)
    edge = list(centre)
    edge[0] += round(8 / volume.spacing[0])
    outside = list(centre)
    outside[1] += round(15 / volume.spacing[1])
    prediction = predictor.predict(points=[centre, edge, outside], point_labels=[1, 1, 0])
    assert prediction.mask.shape == volume.shape
    assert _dice(prediction.mask, truth) > 0.8
    assert prediction.unmet == ()
    assert prediction.volume_ml == pytest.approx(prediction.mask.sum() * volume.grid.voxel_volume_ml)


@pytest.mark.slow
def test_same_prompts_same_mask_bit_for_bit(predictor: VolumePredictor) -> None:
    volume, _ = ball((48, 48, 48), (20, 24, 24), 10.0, np.eye(4))
    prompts = [Point(coordinates=(20, 24, 24)), Point(coordinates=(40, 24, 24), positive=False)]
    predictor.set_volume(volume)
    step_by_step = [predictor.predict_prompts(prompts[:n]) for n in (1, 2)]
    again = VolumePredictor(predictor.model)
    again.set_volume(volume)
    at_once = again.predict_prompts(prompts)
    assert np.array_equal(step_by_step[1].mask, at_once.mask)
    assert step_by_step[1].score == at_once.score
    undone = predictor.predict_prompts(prompts[:1])
    assert undone.encoded == 0
    assert np.array_equal(undone.mask, step_by_step[0].mask)


@pytest.mark.slow
def test_what_is_kept_of_prefixes_is_bounded_and_the_same(predictor: VolumePredictor) -> None:
    """Masks are cached as bits; evicted states are recomputed, and only those."""
    shape, affine = GRIDS["oblique"]
    volume, _ = ball(shape, (30, 28, 15), 13.0, affine)
    predictor.set_volume(volume)
    prompts = [Point(coordinates=(30 + n, 28 - n, 15), positive=n % 3 != 2) for n in range(5)]
    predictions = [predictor.predict_prompts(prompts[:n], refine=False) for n in range(1, 6)]
    logits = predictions[-1].logits.nbytes
    assert 5 * logits < predictor.nbytes < 5 * logits + sum(p.patch.mask.nbytes for p in predictions)
    for n, prediction in enumerate(predictions, start=1):
        again = predictor.predict_prompts(prompts[:n], refine=False)
        assert again.logits is prediction.logits and again.patch.start == prediction.patch.start
        assert np.array_equal(again.patch.mask, prediction.patch.mask) and again.unmet == prediction.unmet
    further = predictor.predict_prompts([*prompts, Point(coordinates=(20, 28, 15))], refine=False)
    small = VolumePredictor(predictor.model, cache=predictor.cache)
    small.set_volume(volume)
    small._states.limit = 3 * logits  # room for two prefixes and their masks
    for prompt_count in (6, 2, 6):
        with_click = [*prompts, Point(coordinates=(20, 28, 15))][:prompt_count]
        last = small.predict_prompts(with_click, refine=False)
        assert small.nbytes <= small._states.limit
    assert np.array_equal(last.mask, further.mask)


def test_next_click_does_not_encode_again(predictor: VolumePredictor) -> None:
    volume, _ = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    first = predictor.predict(points=[(24, 24, 24)])
    second = predictor.predict(points=[(24, 24, 24), (24, 30, 24)], point_labels=[1, 1])
    assert first.encoded >= 1
    assert second.encoded == 0


def test_changed_box_holds_every_changed_voxel(predictor: VolumePredictor) -> None:
    volume, _ = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    first = predictor.predict(points=[(24, 24, 24)])
    second = predictor.predict(points=[(24, 24, 24), (24, 31, 24)], point_labels=[1, 0])
    changed = first.mask != second.mask
    assert changed.any()
    assert second.changed_box is not None
    start, stop = second.changed_box
    changed[box_slices(start, stop)] = False
    assert not changed.any()


@pytest.mark.slow
def test_every_click_is_honoured_even_against_the_image(predictor: VolumePredictor) -> None:
    volume, _ = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    points = [(24, 24, 24), (24, 28, 24), (40, 40, 40), (3, 3, 3)]
    prediction = predictor.predict(points=points, point_labels=[1, 0, 1, 0])
    assert prediction.unmet == ()
    assert [bool(prediction.mask[p]) for p in points] == [True, False, True, False]


def test_contradicting_clicks_are_reported(predictor: VolumePredictor) -> None:
    volume, _ = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    prediction = predictor.predict(points=[(24, 24, 24), (24, 24, 24)], point_labels=[1, 0])
    assert prediction.unmet == (0,)


def test_boxes_bound_the_mask(predictor: VolumePredictor) -> None:
    volume, truth = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    prediction = predictor.predict_prompts([Box(lower=(14, 14, 14), upper=(34, 34, 34))])
    assert _dice(prediction.mask, truth) > 0.8
    flat = predictor.predict_prompts([Box(lower=(14, 14, 24), upper=(34, 34, 24))])
    assert _dice(flat.mask, truth) > 0.6


def test_mask_prompt_comes_back_as_it_is(predictor: VolumePredictor) -> None:
    volume, truth = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    assert np.array_equal(predictor.predict_prompts([MaskPrompt.from_array(truth)]).mask, truth)


@pytest.mark.slow
def test_large_object_is_not_cut_at_the_window(predictor: VolumePredictor) -> None:
    volume, truth = ball((200, 200, 200), (100, 100, 100), 85.0, np.eye(4))
    predictor.set_volume(volume)
    points = [(100, 100, 100), (100, 100, 180), (20, 100, 100), (4, 4, 4)]
    prediction = predictor.predict(points=points, point_labels=[1, 1, 1, 0])
    assert _dice(prediction.mask, truth) > 0.9


def _bumpy() -> tuple[Volume, np.ndarray]:
    """Return an object with a wavy surface, larger than a window at the volume's own spacing."""
    shape = (140, 130, 120)
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2.0 for n in shape], indexing="ij", sparse=True)
    truth = np.sqrt(x**2 + y**2 + z**2) + 3 * np.sin(x / 5) * np.cos(y / 6) * np.cos(z / 7) < 48
    noise = np.random.default_rng(0).normal(size=shape) * 15
    return Volume.from_array((truth * 200 + noise).astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])), truth


@pytest.mark.slow
def test_tiles_bring_the_outline_closer_and_keep_the_prompts(predictor: VolumePredictor) -> None:
    volume, truth = _bumpy()
    predictor.set_volume(volume)
    box = np.argwhere(truth)
    prompts = {"boxes": [(box.min(axis=0), box.max(axis=0))], "points": [(3, 3, 3)], "point_labels": [0]}
    coarse = predictor.predict(**prompts, refine=False)
    messages: list[str] = []
    fine = predictor.predict(**prompts, refine=True, progress=lambda text, share: messages.append(text))
    assert _dice(fine.mask, truth) > _dice(coarse.mask, truth)
    assert fine.unmet == ()
    assert any("tile" in text for text in messages)
    assert np.array_equal(predictor.predict(**prompts, refine=False).mask, coarse.mask)
    # A new predictor without cached states gives the same mask.
    second = VolumePredictor(predictor.model)
    second.set_volume(volume)
    assert np.array_equal(second.predict(**prompts, refine=True).mask, fine.mask)


def test_tiles_leave_small_objects_as_they_are(predictor: VolumePredictor) -> None:
    volume, _ = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    coarse, fine = (predictor.predict(points=[(24, 24, 24)], refine=refine) for refine in (False, True))
    assert np.array_equal(coarse.mask, fine.mask)
    assert fine.encoded == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "There is no prompt"),
        ({"points": [(1, 1, 1)], "point_labels": [0]}, "start with a positive click"),
        ({"points": [(99, 1, 1)]}, "lies outside the image"),
        ({"points": [(1, 1)]}, "shape"),
        ({"points": [(1, 1, 1)], "point_labels": [1, 1]}, "Point labels"),
        ({"boxes": [(1, 1, 1)]}, "Boxes must be"),
    ],
)
def test_prompts_that_make_no_sense(predictor: VolumePredictor, arguments: dict, sentence: str) -> None:
    volume, _ = ball((48, 48, 48), (24, 24, 24), 10.0, np.eye(4))
    predictor.set_volume(volume)
    with pytest.raises(PromptError, match=sentence):
        predictor.predict(**arguments)


def test_no_volume() -> None:
    with pytest.raises(PromptError, match="set_volume"):
        VolumePredictor(device="cpu").predict(points=[(1, 1, 1)])
