"""Alternatives to the first mask: distinct, by size, honouring the prompts, and part of the prompts."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from medsam_app.errors import PromptError
from medsam_app.grid.masks import dice
from medsam_app.io.volume import Volume
from medsam_app.predict.core.engine import SAME
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import MOST_ALTERNATIVES, Box, Choice, MaskPrompt, Paint, Point, can_choose
from medsam_app.session.session import Session
from medsam_app.synthetic.torso import torso_phantom
from tests.predict.slicewise.test_engine import predictor_on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def volume() -> Volume:
    """A torso, whose organs lie in an ambiguous neighbourhood."""
    return torso_phantom()[0]


@pytest.fixture(scope="module")
def predictor(volume: Volume) -> VolumePredictor:
    predictor = VolumePredictor(device="cpu", refine=False)
    predictor.set_volume(volume)
    return predictor


@pytest.fixture(scope="module")
def click(volume: Volume) -> Point:
    """A click in the middle of the volume."""
    i, j, k = (np.array(volume.grid.shape) // 2).tolist()
    return Point(coordinates=(i, j, k))


def test_they_differ_are_ordered_by_size_and_honour_the_click(
    predictor: VolumePredictor, click: Point
) -> None:
    shown = predictor.predict_prompts([click])
    masks = predictor.alternatives([click])
    assert 2 <= len(masks) <= MOST_ALTERNATIVES
    assert [mask.number for mask in masks] == list(range(1, len(masks) + 1))
    volumes = [mask.prediction.voxels for mask in masks]
    assert all(a <= b for a, b in pairwise(volumes)) and min(volumes) > 0
    assert [np.array_equal(m.prediction.mask, shown.mask) for m in masks] == [m.shown for m in masks]
    assert sum(mask.shown for mask in masks) == 1
    at = tuple(int(v) for v in click.coordinates)
    for mask in masks:
        assert mask.prediction.mask[at] and not mask.prediction.unmet
        assert mask.prediction.mask.shape == predictor.volume.grid.shape
    for a, b in combinations(masks, 2):
        assert dice(a.prediction.mask, b.prediction.mask) < SAME


def test_a_choice_is_the_start_of_later_corrections(predictor: VolumePredictor, click: Point) -> None:
    masks = predictor.alternatives([click])
    other = next(mask for mask in masks if not mask.shown)
    chosen = predictor.predict_prompts([click, Choice(number=other.number)])
    assert np.array_equal(chosen.mask, other.prediction.mask)
    assert chosen.score == other.prediction.score
    by_arrays = predictor.predict(points=[click.coordinates], alternative=other.number)
    assert np.array_equal(by_arrays.mask, chosen.mask)
    # A negative click where only the chosen mask is: it is honoured, and the start was the chosen mask.
    outside = np.argwhere(chosen.mask)[0].tolist()
    no = Point(coordinates=tuple(outside), positive=False)
    corrected = predictor.predict_prompts([click, Choice(number=other.number), no])
    assert not corrected.mask[tuple(outside)] and not corrected.unmet
    without = predictor.predict_prompts([click, no])
    assert not np.array_equal(corrected.mask, without.mask)
    # The same from nothing: results do not depend on what was computed before.
    predictor.forget()
    again = predictor.predict_prompts([click, Choice(number=other.number), no])
    assert np.array_equal(again.mask, corrected.mask)


def test_alternatives_to_a_box_stay_in_it(predictor: VolumePredictor, volume: Volume) -> None:
    middle = np.array(volume.grid.shape) // 2
    low, high = (middle - 12).tolist(), (middle + 12).tolist()
    for mask in predictor.alternatives([Box(lower=tuple(low), upper=tuple(high))]):
        found = np.argwhere(mask.prediction.mask)
        assert found.min(0).tolist() >= [v - 3 for v in low]
        assert (found <= np.array(high) + 3).all()


def test_wrong_choices_are_refused(predictor: VolumePredictor, volume: Volume, click: Point) -> None:
    count = len(predictor.alternatives([click]))
    if count < MOST_ALTERNATIVES:
        with pytest.raises(PromptError, match=f"mask {count + 1} was asked for"):
            predictor.predict_prompts([click, Choice(number=count + 1)])
    with pytest.raises(PromptError, match="numbered by size from 1; got 0"):
        predictor.predict(points=[click.coordinates], alternative=0)
    mask = np.zeros(volume.grid.shape, bool)
    mask[5:9, 5:9, 5:9] = True
    with pytest.raises(PromptError, match="comes first"):
        predictor.predict(mask_input=mask, alternative=1)
    given = MaskPrompt.from_array(mask)
    assert predictor.alternatives([given]) == ()
    for misplaced in ([Choice(number=1), click], [click, click, Choice(number=1)], [given, Choice(number=1)]):
        with pytest.raises(PromptError, match="does not follow the first"):
            predictor.predict_prompts(misplaced)
    assert not can_choose([Paint(what="brush")])


def test_a_session_steps_through_the_masks_and_undoes(
    predictor: VolumePredictor, volume: Volume, click: Point
) -> None:
    session = Session(volume, predictor)
    item = session.add_object()
    with pytest.raises(PromptError, match="does not start with one"):
        session.choose_next(item.id, 1)
    session.add_prompt(item.id, click)
    shown, masks = session.prediction(item.id), session.alternatives(item.id)
    assert shown is not None and session.choice(item.id) is None
    seen = []
    for _ in masks:
        session.choose_next(item.id, 1)
        found = session.prediction(item.id)
        assert found is not None
        seen.append(found.voxels)
        assert len(session.get(item.id).prompts) == 2  # a choice replaces the earlier one
    assert sorted(seen) == [mask.prediction.voxels for mask in masks]
    assert seen[-1] == shown.voxels  # once around
    assert session.choice(item.id) == (next(m.number for m in masks if m.shown), len(masks))
    session.choose_next(item.id, -1)
    assert session.prediction(item.id).voxels == seen[-2]  # type: ignore[union-attr]
    session.undo()
    assert session.prediction(item.id).voxels == seen[-1]  # type: ignore[union-attr]
    # A click that is moved was not the one for which the mask was chosen.
    session.replace_prompt(item.id, 0, click.model_copy(update={"coordinates": (120, 80, 40)}))
    assert [prompt.kind for prompt in session.get(item.id).prompts] == ["point"]
    session.undo()
    session.add_prompt(item.id, click)
    with pytest.raises(PromptError, match="has more prompts"):
        session.choose(item.id, 1)
    session.delete_prompt(item.id, 0)
    assert [prompt.kind for prompt in session.get(item.id).prompts] == ["point"]


def test_slice_models_offer_only_the_mask_that_is_shown(volume: Volume) -> None:
    masks = predictor_on(volume).alternatives([Point(coordinates=(112, 80, 40))])
    assert [(mask.number, mask.shown) for mask in masks] == [(1, True)]
