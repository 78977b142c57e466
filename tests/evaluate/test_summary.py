"""Every number of a summary, recomputed in another way."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from medsam_app.evaluate.bootstrap import draw
from medsam_app.evaluate.comparison import compare
from medsam_app.evaluate.summary import Summary, shown_clicks, size_class, summarise
from medsam_app.measure.scores import FalseLabel, Score

CLICKS = 6


def _scores(method: str = "ours", seed: int = 0) -> list[Score]:
    """Return scores of 30 objects of three datasets and two modalities, click by click, unsorted."""
    rng = np.random.default_rng(seed)
    scores = []
    for click in range(1, CLICKS + 1):
        for n in range(30):
            dataset = "abc"[n % 7 % 3]
            dice = float(np.clip(rng.normal(0.4 + 0.06 * click, 0.2), 0, 1))
            scores.append(
                Score(
                    method=method,
                    dataset=dataset,
                    modality="CT" if n % 3 else "MR",
                    case=f"case{n // 2}",
                    label=f"label {n}",
                    value=n,
                    voxels=[300, 999, 1000, 19_999, 20_000, 10**6][n % 6],
                    click=click,
                    dice=dice,
                    quality=None,
                    unmet=int(rng.random() < 0.1),
                    seconds=None if click == 5 else float(rng.random()),
                    surface_dice=dice / 2,
                    hd95=None if n % 4 == click % 4 else 10 * dice,
                )
            )
    return scores


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    return _scores()


@pytest.fixture(scope="module")
def summary(scores: list[Score]) -> Summary:
    (result,) = summarise(scores)
    return result


def test_means_of_groups(scores: list[Score], summary: Summary) -> None:
    belongs = {
        "dataset": lambda s, name: s.dataset == name,
        "modality": lambda s, name: s.modality == name,
        "size": lambda s, name: (
            {"small": 0, "medium": 1000, "large": 20_000}[name]
            <= s.voxels
            < {"small": 1000, "medium": 20_000, "large": 10**9}[name]
        ),
        "label": lambda s, name: f"{s.dataset}, {s.label}" == name,
        "objects": lambda s, name: True,
    }
    labels = sorted({f"{s.dataset}, {s.label}" for s in scores})
    assert [(g.kind, g.name) for g in summary.groups] == [
        *(("dataset", name) for name in "abc"),
        *(("modality", name) for name in ("CT", "MR")),
        *(("size", name) for name in ("small", "medium", "large")),
        *(("label", name) for name in labels),
        ("objects", "all objects"),
        ("datasets", "mean over datasets"),
    ]
    for group in summary.groups[:-1]:
        assert list(group.dice) == list(group.hd95) == [1, 2, 3, 5, 6]  # 10 exceeds the number of clicks
        for click, mean in group.dice.items():
            rows = [s for s in scores if s.click == click and belongs[group.kind](s, group.name)]
            dice_values = [s.dice for s in rows]
            assert len(dice_values) == group.objects > 0
            assert mean.value == pytest.approx(sum(dice_values) / len(dice_values)) and mean.undefined == 0
            assert group.surface_dice[click].value == pytest.approx(mean.value / 2)
            distances = [s.hd95 for s in rows if s.hd95 is not None]
            assert group.hd95[click].undefined == len(dice_values) - len(distances)
            if distances:
                assert group.hd95[click].value == pytest.approx(np.mean(distances))
            else:
                assert group.hd95[click].value is None
            cases: dict[tuple, list[float]] = {}
            for s in rows:
                cases.setdefault((s.dataset, s.modality, s.case), []).append(s.dice)
            assert len(cases) == group.cases
            if group.cases == 1:
                assert mean.low == mean.value == mean.high
                continue
            # For a ratio of sums over n independent cases: approximately 1.96 standard errors.
            deviations = np.array([sum(dice) - mean.value * len(dice) for dice in cases.values()])
            half_width = 1.96 * np.sqrt(np.sum(deviations**2)) / len(dice_values)
            assert mean.low < mean.value < mean.high
            assert (mean.high - mean.low) / 2 == pytest.approx(half_width, rel=0.2)


def test_mean_over_datasets(summary: Summary) -> None:
    datasets = [g for g in summary.groups if g.kind == "dataset"]
    together = summary.groups[-1]
    assert together.objects == 30
    for click, mean in together.dice.items():
        assert mean.value == pytest.approx(np.mean([g.dice[click].value for g in datasets]))
        # Variances of independent means add up.
        halves = [(g.dice[click].high - g.dice[click].low) / 2 for g in datasets]
        assert (mean.high - mean.low) / 2 == pytest.approx(np.sqrt(np.sum(np.square(halves))) / 3, rel=0.12)


def test_clicks_honoured_time_and_harm(scores: list[Score], summary: Summary) -> None:
    curves: dict[int, list[float]] = {}
    for s in sorted(scores, key=lambda s: s.click):
        curves.setdefault(s.value, []).append(s.dice)
    for reach, target in zip(summary.reach, (0.80, 0.85), strict=True):
        needed = [next((n for n, d in enumerate(c, 1) if d >= target), CLICKS + 1) for c in curves.values()]
        assert reach.target == target
        assert reach.clicks.value == pytest.approx(np.mean(needed))
        assert reach.clicks.low < reach.clicks.value < reach.clicks.high
        assert reach.never == pytest.approx(needed.count(CLICKS + 1) / 30) and 0 < reach.never < 1
    last = [s for s in scores if s.click == CLICKS]
    assert summary.honoured == pytest.approx(sum(s.unmet == 0 for s in last) / 30) and summary.honoured < 1
    assert summary.seconds == np.median([s.seconds for s in scores if s.seconds is not None])
    means = [np.mean([c[n] for c in curves.values()]) for n in range(CLICKS)]
    assert summary.worse == sum(b < a for a, b in pairwise(means))
    lost = {value: max(c) - c[-1] for value, c in curves.items()}
    assert summary.spoilt == sum(loss >= 0.05 for loss in lost.values()) > 0
    worst = max(lost, key=lambda value: lost[value])
    assert summary.worst is not None and summary.worst.label == f"label {worst}"
    assert summary.worst.best - summary.worst.last == pytest.approx(lost[worst])


def test_helpful_clicks_spoil_no_object() -> None:
    scores = [s for s in _scores() if s.click <= 2]
    better = [replace(s, dice=0.5 + 0.3 * (s.click - 1) + 0.001 * s.value, unmet=0) for s in scores]
    (summary,) = summarise(better)
    assert (summary.worse, summary.spoilt, summary.worst, summary.honoured) == (0, 0, None, 1.0)
    assert summary.reach[0].never == 0 and summary.reach[0].clicks.value == 2


def test_methods_are_summarised_separately(scores: list[Score], summary: Summary) -> None:
    their_scores = _scores("theirs", seed=1)
    both = summarise([*their_scores, *scores])
    assert [m.method for m in both] == ["theirs", "ours"]
    assert both[1] == summary and both[0] == summarise(their_scores)[0] != summary


def test_intervals_are_seeded_and_shrink_with_more_cases(scores: list[Score], summary: Summary) -> None:
    assert summarise(scores) == (summary,)
    (reseeded,) = summarise(scores, seed=1)
    old, new = summary.groups[-2].dice[1], reseeded.groups[-2].dice[1]
    assert new.value == old.value and (new.low, new.high) != (old.low, old.high)
    widths = []
    for count in (10, 40, 160):
        values = np.tile(np.linspace(0, 1, 10), count // 10)[:, None]
        resampled = draw(values, range(count), np.random.default_rng(0))
        assert resampled.resampled.shape == (2000, 1) and resampled.mean[0] == pytest.approx(0.5)
        assert resampled.resampled.mean() == pytest.approx(0.5, abs=0.02)
        widths.append(float(np.subtract(*np.percentile(resampled.resampled[:, 0], [97.5, 2.5]))))
    # Four times as many cases halve the width.
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.1)


def test_one_object_has_an_interval_of_width_zero() -> None:
    (summary,) = summarise([s for s in _scores() if s.value == 4])
    mean = summary.groups[0].dice[3]
    assert mean.low == mean.value == mean.high


def test_size_classes() -> None:
    assert [size_class(n) for n in (100, 999, 1000, 19_999, 20_000)] == [
        "small", "small", "medium", "medium", "large",
    ]  # fmt: skip


def test_objects_of_a_case_do_not_count_as_cases() -> None:
    """Repeat the objects of each case ten times: the interval stays the same."""
    once = np.linspace(0, 1, 12)[:, None]
    rng = [np.random.default_rng(3) for _ in range(3)]
    single = draw(once, range(12), rng[0])
    repeated = draw(np.repeat(once, 10, axis=0), np.repeat(np.arange(12), 10).tolist(), rng[1])
    np.testing.assert_allclose(repeated.resampled, single.resampled)
    independent = draw(np.repeat(once, 10, axis=0), range(120), rng[2])
    assert independent.resampled.std() < 0.5 * repeated.resampled.std()


def test_undefined_values_are_ignored() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    some, none = draw(values, "abc", np.random.default_rng(0)).means()
    assert (some.value, some.undefined, none.undefined) == (2.0, 1, 3)
    assert (some.low, some.high) == (1.0, 3.0) and (none.value, none.low, none.high) == (None,) * 3


def test_shown_clicks(scores: list[Score]) -> None:
    assert [shown_clicks(n) for n in (1, 2, 7, 10, 12)] == [
        (1,), (1, 2), (1, 2, 3, 5, 7), (1, 2, 3, 5, 10), (1, 2, 3, 5, 10, 12),
    ]  # fmt: skip
    (summary,) = summarise(scores, shown=(2, 6), targets=(0.5,))
    assert list(summary.groups[0].dice) == [2, 6] and [reach.target for reach in summary.reach] == [0.5]


def test_labels_without_a_prompt_are_click_zero(scores: list[Score]) -> None:
    mapped = [replace(s, method="map", click=0, seconds=2.0) for s in scores if s.click == 1]
    false = FalseLabel("map", "a", "CT", "case0", "label 9", 9, 120)
    map_summary, clicked = summarise([*mapped, *scores], false=[false, replace(false, case="case1")])
    assert (map_summary.clicks, map_summary.false_labels, map_summary.reach, map_summary.seconds) == (
        0,
        2,
        (),
        2.0,
    )
    assert list(map_summary.groups[0].dice) == [0]
    assert map_summary.groups[0].dice[0].value == clicked.groups[0].dice[1].value
    assert clicked.false_labels == 0


def test_differences_are_paired() -> None:
    """Resample whole cases: a constant difference between methods has an interval of width zero."""
    better, worse = _scores("better"), []
    for s in better:
        worse.append(replace(s, method="worse", dice=s.dice - 0.125))
    (comparison,) = compare([*better, *worse], [("better", "worse"), ("better", "nobody")], shown=(1, 5))
    assert (comparison.method, comparison.against, comparison.objects) == ("better", "worse", 30)
    for mean in comparison.dice.values():
        assert mean.value == mean.low == mean.high == pytest.approx(0.125)
    some = [s for s in worse if s.dataset == "a"]
    (fewer,) = compare([*better, *some], [("better", "worse")], shown=(1,))
    assert fewer.objects == len({s.object for s in some}) < 30
    assert fewer.cases == len({(s.modality, s.case) for s in some})
    other = [replace(s, method="worse") for s in _scores(seed=1)]
    (unsure,) = compare([*better, *other], [("better", "worse")], shown=(1,))
    (back,) = compare([*better, *other], [("worse", "better")], shown=(1,))
    one, two = unsure.dice[1], back.dice[1]
    assert one.low < one.value < one.high and two.value == pytest.approx(-one.value)
    assert (two.low, two.high) == pytest.approx((-one.high, -one.low), abs=0.02)
