"""Training windows: reproducible by number, on the plan's grid, true to the label maps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_app.finetuning.training_windows import TrainingWindows, labels_in, variations
from medsam_app.predict.whole_volume import whole_roi
from tests.support.teaching_folder import ball_cases, small_plan

pytestmark = pytest.mark.slow


def test_a_window_is_a_function_of_its_number(tmp_path: Path) -> None:
    cases = ball_cases(tmp_path / "data")
    one, two = TrainingWindows(cases, small_plan()), TrainingWindows(cases, small_plan())
    expected = [two.draw(number) for number in (7, 3, 5)]
    for number, same in zip((7, 3, 5), expected, strict=True):
        window = one.draw(number)
        for name in ("image", "valid", "target", "labels"):
            assert torch.equal(getattr(window, name), getattr(same, name))
        assert window.label == same.label
        assert window.rng.random() == same.rng.random()
    assert not torch.equal(one.draw(7).image, one.draw(11).image)
    other = TrainingWindows(cases, small_plan(seed=1))
    assert not torch.equal(one.draw(7).image, other.draw(7).image)


def test_every_case_is_used_once_before_any_is_repeated(tmp_path: Path) -> None:
    windows = TrainingWindows(ball_cases(tmp_path / "data", cases=3), small_plan())
    orders = [[windows.order(3 * turn + place) for place in range(3)] for turn in range(6)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_targets_are_the_labels_and_lie_in_the_volume(tmp_path: Path) -> None:
    windows = TrainingWindows(ball_cases(tmp_path / "data"), small_plan())
    shown: Counter[int] = Counter()
    for number in range(40):
        window = windows.draw(number)
        assert window.image.shape == window.valid.shape == window.target.shape == (16, 16, 16)
        assert torch.equal(window.target, window.labels == window.label + 1)
        assert window.valid[window.target].all()
        assert torch.isfinite(window.image).all()
        shown[window.label] += bool(window.target.any())
        if window.target.any():
            # Intensities: larger ball 300, smaller ball 500, background 0.
            assert window.image[window.target].mean() > window.image[window.labels == 0].mean() + 0.2
    assert min(shown[0], shown[1]) > 8


def test_without_learned_prompts_something_is_always_shown(tmp_path: Path) -> None:
    windows = TrainingWindows(ball_cases(tmp_path / "data"), small_plan(automatic=False))
    assert all(windows.draw(number).target.any() for number in range(40))


def test_without_variation_a_window_is_a_part_of_the_volume(tmp_path: Path) -> None:
    case = ball_cases(tmp_path / "data", cases=1)
    still = {"rotate": 0, "zoom": 0, "noise": 0, "gamma": 0, "blur": 0, "bias": 0}
    plan = small_plan(**still, spacing=1.0)
    assert len(variations(plan)) == 1
    window = TrainingWindows(case, plan).draw(0)
    volume, label_map = case[0].load()
    inside = volume.array[label_map == window.label + 1]
    low, high = np.percentile(volume.array, [0.5, 99.5])
    expected = (inside.mean() - low) / (high - low)
    assert float(window.image[window.target].mean()) == pytest.approx(float(expected), abs=0.06)


@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.8])
def test_labels_on_another_grid_keep_their_volume(tmp_path: Path, spacing: float) -> None:
    volume, label_map = ball_cases(tmp_path / "data", cases=1)[0].load()
    roi = whole_roi(volume.grid, (spacing,) * 3, (16, 16, 16))
    assert not roi.open_faces().any()
    resampled = labels_in(label_map, roi, [1, 2])
    voxel = float(volume.spacing.prod())
    for place, value in enumerate((1, 2), start=1):
        truth = float((label_map == value).sum()) * voxel
        assert float((resampled == place).sum()) * spacing**3 == pytest.approx(truth, rel=0.08)


def test_labels_on_the_same_grid_are_the_same(tmp_path: Path) -> None:
    volume, label_map = ball_cases(tmp_path / "data", cases=1)[0].load()
    # The file's axes point to the left, to the front and up.
    cube = np.where(np.arange(20) % 2 == 0, label_map, 0)
    roi = whole_roi(volume.grid, (1.0,) * 3, (16, 16, 16))
    resampled = labels_in(cube, roi, [1, 2]).numpy()
    assert set(np.unique(resampled)) == {0, 1, 2}
    voxels = roi.to_roi(np.argwhere(cube == 2)).round().astype(int)
    assert (resampled[tuple(voxels.T)] == 2).mean() > 0.9


def test_cases_that_do_not_fit_into_memory_are_read_again(tmp_path: Path) -> None:
    cases = ball_cases(tmp_path / "data", cases=3)
    none, all_ = TrainingWindows(cases, small_plan(), memory=0), TrainingWindows(cases, small_plan())
    assert (none.cached, all_.cached) == (0, 3)
    assert torch.equal(none.draw(4).image, all_.draw(4).image)


def test_cached_plans_repeat_the_same_windows(tmp_path: Path) -> None:
    windows = TrainingWindows(ball_cases(tmp_path / "data", cases=2), small_plan(cached=True))
    views = [windows.draw(number) for number in range(40)]
    by_view: dict[int, list[torch.Tensor]] = {}
    for window in views:
        by_view.setdefault(window.view, []).append(window.image)
    assert len(by_view) == 8
    assert all(torch.equal(image, group[0]) for group in by_view.values() for image in group)
    assert len({window.label for window in views if window.view == 0}) == 2
