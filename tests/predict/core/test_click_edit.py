from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam_app.grid.geometry import Grid
from medsam_app.grid.masks import dice
from medsam_app.grid.roi import Roi
from medsam_app.models.load import load_model
from medsam_app.predict.core.click_edit import correct_near_click, keep_to_click, middle_of_mask
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.windowed import engine as windows
from medsam_app.predict.windowed.engine import FREE_PROMPTS, WindowEngine
from medsam_app.predict.windowed.window_choice import Framing
from medsam_app.prompts.simulated_clicks import click_inside, next_click
from medsam_app.prompts.types import Point
from medsam_app.synthetic.torso import torso_phantom

SHAPE = (32, 32, 32)
GRID = Grid(SHAPE, np.eye(4))
ROI = Roi.centred((15.5,) * 3, (1.0,) * 3, SHAPE, GRID.ras)


def ball(radius: float) -> torch.Tensor:
    axes = np.ogrid[:32, :32, :32]
    return torch.from_numpy(np.where(sum((a - 16.0) ** 2 for a in axes) <= radius**2, 4.0, -4.0)).float()


def test_far_from_the_click_nothing_changes() -> None:
    old = ball(9)
    mended = correct_near_click(old, -old, ROI, Point(coordinates=(24, 16, 16), positive=False))
    assert torch.equal(mended[:16], old[:16])
    assert mended[24, 16, 16] < 0


def test_a_click_deep_in_an_error_reaches_all_of_it() -> None:
    empty = torch.full(SHAPE, -4.0)
    small = ball(6)
    at_outline = Point(coordinates=(16, 16, 16), positive=False)
    assert torch.equal(correct_near_click(small, empty, ROI, at_outline) > 0, empty > 0)


def test_middle_keeps_away_from_negative_clicks() -> None:
    old = ball(8)
    assert middle_of_mask(old, ROI, []).tolist() == [16, 16, 16]
    moved = middle_of_mask(old, ROI, [Point(coordinates=(16, 16, 16), positive=False)])
    assert np.linalg.norm(moved - 16) > 3
    assert middle_of_mask(-old.abs(), ROI, []) is None


def test_a_click_gets_only_the_change_it_is_in() -> None:
    """The new mask grows at the click, grows elsewhere and loses a piece: only the first is accepted."""
    old = ball(5)
    new = old.clone()
    new[21:25, 14:19, 14:19] = 2.0  # next to the ball, clicked
    new[2:5, 2:5, 2:5] = 2.0
    new[12:14, 16, 16] = -2.0
    edited = keep_to_click(old, new, ROI, Point(coordinates=(23, 16, 16)))
    granted = (edited > 0) != (old > 0)
    assert granted[22:25, 14:19, 14:19].all()
    assert not granted[:21].any()
    # A negative click where the mask grew accepts none of the changes.
    refused = keep_to_click(old, new, ROI, Point(coordinates=(23, 16, 16), positive=False))
    assert torch.equal(refused > 0, old > 0)
    removed = keep_to_click(old, new, ROI, Point(coordinates=(12, 16, 16), positive=False))
    assert torch.equal((removed > 0) != (old > 0), (new <= 0) & (old > 0))


def test_a_negative_click_removes_only_near_it() -> None:
    """The new mask loses everything; at the end of a thin branch, only the branch near the click goes."""
    old = ball(8)
    old[24:31, 15:18, 15:18] = 4.0
    nothing = torch.full(SHAPE, -4.0)
    edited = keep_to_click(old, nothing, ROI, Point(coordinates=(29, 16, 16), positive=False))
    assert bool((edited[26:31, 15:18, 15:18] < 0).all())
    assert torch.equal(edited[:18] > 0, old[:18] > 0)
    # A click deep inside the mask says that all of it is wrong.
    edited = keep_to_click(old, nothing, ROI, Point(coordinates=(16, 16, 16), positive=False))
    assert not bool((edited > 0).any())


def test_logits_settle_where_masks_agree() -> None:
    """The outline lies between the old and the new one, away from the click."""
    old, new = ball(5), ball(7) / 2
    edited = keep_to_click(old, new, ROI, Point(coordinates=(2, 2, 2)))
    agree = (old > 0) == (new > 0)
    assert torch.equal(edited[agree], (old + new)[agree] / 2)
    assert torch.equal(edited[~agree], old[~agree])


@pytest.mark.slow
def test_after_the_free_prompts_a_click_only_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same window, a later click only adds or only removes voxels; a first prompt does both."""
    volume, label_map, _ = torso_phantom()
    truth = label_map == 9
    engine = WindowEngine(load_model(), volume, EmbeddingCache(2**28), Framing(encodings=1))
    click, prompts, state = (tuple(np.argwhere(truth)[truth.sum() // 2]), True), (), None
    against: dict[bool, int] = {False: 0, True: 0}
    for _ in range(FREE_PROMPTS + 3):
        point = Point(coordinates=click[0], positive=click[1])
        prompts, before = (*prompts, point), state
        state = engine.step(before, prompts, None)
        if before is not None and len(prompts) > FREE_PROMPTS:
            with monkeypatch.context() as patch:
                patch.setattr(windows, "FREE_PROMPTS", 99)
                free = engine.step(before, prompts, None)
            assert before.roi == state.roi == free.roi
            for mends, after in ((True, state), (False, free)):
                lost, won = (
                    (before.logits > 0) & (after.logits <= 0),
                    (before.logits <= 0) & (after.logits > 0),
                )
                against[mends] += int((lost if point.positive else won).sum())
        correction = next_click(state.patch.to_array(truth.shape), truth, spacing=volume.spacing)
        assert correction is not None
        click = (correction[0], bool(correction[1]))
    assert against[True] == 0
    assert against[False] > 0


@pytest.mark.slow
@pytest.mark.parametrize("positive", [True, False])
def test_a_click_mends_a_given_mask(positive: bool) -> None:
    """A piece is missing from (or was added to) a good mask: one click improves it."""
    volume, label_map, names = torso_phantom()
    truth = label_map == next(value for value, name in names.items() if name == "spleen")
    inside = np.argwhere(truth)
    i, j, k = inside[len(inside) // 2]
    mask, wrong = truth.copy(), np.zeros_like(truth)
    wrong[i - 4 : i + 5, j - 4 : j + 5, k - 2 : k + 3] = True
    if positive:
        mask &= ~wrong
        click = (i, j, k)
    else:
        low = np.argwhere(truth).min(axis=0)
        wrong = np.zeros_like(truth)
        wrong[low[0] - 10 : low[0] - 2, j - 4 : j + 5, k - 2 : k + 3] = True
        mask |= wrong
        click = (low[0] - 6, j, k)
    predictor = VolumePredictor()
    predictor.set_volume(volume)
    prediction = predictor.predict(mask_input=mask, points=[click], point_labels=[int(positive)])
    assert prediction.unmet == ()
    assert dice(prediction.mask, truth) > dice(mask, truth)
    assert dice(prediction.mask, mask) > 0.9


@pytest.mark.slow
def test_a_window_that_moves_loses_no_detail() -> None:
    """The fourth click lies outside the window of the first three; the unchanged part keeps its detail."""
    volume, label_map, _ = torso_phantom()
    truth = label_map == 4
    points = [click_inside(truth)]
    sections = np.flatnonzero(truth.any(axis=(0, 1)))
    for place in (0.45, 0.55, 0.97):
        section = np.zeros_like(truth)
        at = int(sections[0] + place * (sections[-1] - sections[0]))
        section[:, :, at] = truth[:, :, at]
        points.append(click_inside(section))
    predictor = VolumePredictor(refine=False, framing=Framing(first_mm=0.8, encodings=1))
    predictor.set_volume(volume)
    before, after = predictor.predict(points=points[:FREE_PROMPTS]), predictor.predict(points=points)
    assert after.roi.spacing[0] > 1.2 * before.roi.spacing[0]
    assert (before.mask & ~after.mask).sum() <= 0.0015 * before.voxels  # twice as large without that
