"""Window choice: what a window holds, and when it is enlarged, narrowed or kept."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import Roi, fitting_spacing
from medsam_app.predict.windowed.window_choice import (
    Framing,
    better_roi,
    first_roi,
    holds_points,
    roi_with_points,
    usual_spacing,
    wider_roi,
)
from medsam_app.prompts.types import Box, Point

SHAPE = (64, 64, 64)
FRAMING = Framing()
LARGE = Grid((300, 300, 200), np.diag([-1.0, -1.0, 1.5, 1.0]))
SMALL = Grid((40, 30, 20), np.diag([1.0, 1.0, 1.0, 1.0]))


def _click(*ijk: float) -> Point:
    return Point(coordinates=ijk)  # type: ignore[arg-type]


def _first(*prompts: Point | Box, grid: Grid = LARGE) -> Roi:
    return first_roi(prompts, grid, SHAPE, FRAMING)


def _cube(low: int, high: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[low:high, low:high, low:high] = True
    return mask


def test_a_click_is_seen_at_the_usual_spacing_in_the_middle() -> None:
    roi = _first(_click(150, 140, 100))
    assert roi.spacing == (FRAMING.first_mm,) * 3
    np.testing.assert_allclose(roi.to_roi((150, 140, 100)), 31.5, atol=1e-3)


def test_a_small_volume_is_shown_whole_and_has_no_wider_window() -> None:
    roi = _first(_click(3, 3, 3), grid=SMALL)
    assert not roi.open_faces().any()
    assert max(roi.spacing) == pytest.approx(max(FRAMING.finest, fitting_spacing(SMALL, SHAPE)))
    assert wider_roi(roi, SMALL, FRAMING) is None


def test_a_wide_window_has_the_same_middle_and_ends_with_the_volume() -> None:
    roi = _first(_click(150, 140, 100))
    wide = wider_roi(roi, LARGE, FRAMING)
    assert wide is not None
    assert wide.spacing[0] == pytest.approx(FRAMING.first_mm * FRAMING.wide)
    again = wider_roi(wide, LARGE, FRAMING)
    assert again is None or max(again.spacing) <= fitting_spacing(LARGE, SHAPE)


def test_clicks_far_apart_are_all_held() -> None:
    clicks = [_click(60, 60, 50), _click(230, 240, 150)]
    assert holds_points(_first(*clicks), clicks, FRAMING)
    near = _first(clicks[0])
    assert not holds_points(near, clicks, FRAMING)
    assert holds_points(roi_with_points(near, _cube(20, 40), clicks, LARGE, FRAMING), clicks, FRAMING)


@pytest.mark.parametrize("flat", [False, True])
def test_a_box_has_room_around_it(flat: bool) -> None:
    low, high = (100, 110, 60), (159, 149, 60 if flat else 85)
    roi = _first(Box(lower=low, upper=high))
    corners = roi.to_roi([low, high])
    assert corners.min() > 8
    assert corners.max() < 55
    assert max(roi.spacing) == pytest.approx(60 / 64 * (1 + 2 * FRAMING.margin), rel=0.02)


def test_a_mask_that_runs_out_of_the_window_enlarges_it_and_is_held() -> None:
    roi = _first(_click(150, 140, 100))
    better = better_roi(roi, _cube(1, 40), [_click(150, 140, 100)], LARGE, FRAMING)
    assert better is not None
    assert max(better.spacing) == pytest.approx(FRAMING.first_mm * FRAMING.zoom_out)
    ends = better.to_roi(roi.to_file([[1, 1, 1], [39, 39, 39]]))
    assert ends.min() >= 0
    assert ends.max() <= 63


def test_a_small_mask_narrows_the_window_down_to_the_finest_spacing() -> None:
    roi = first_roi([_click(150, 140, 100)], LARGE, SHAPE, Framing(first_mm=4.0))
    better = better_roi(roi, _cube(28, 36), [_click(150, 140, 100)], LARGE, FRAMING)
    assert better is not None
    assert FRAMING.finest * LARGE.spacing.min() <= min(better.spacing) < 2.0


def test_a_mask_that_suits_its_window_or_ends_with_the_volume_leaves_it() -> None:
    click = _click(150, 140, 100)
    assert better_roi(_first(click), _cube(16, 48), [click], LARGE, FRAMING) is None
    assert better_roi(_first(click), np.zeros(SHAPE, dtype=bool), [click], LARGE, FRAMING) is None
    roi = _first(_click(3, 3, 3), grid=SMALL)
    assert better_roi(roi, np.ones(SHAPE, dtype=bool), [_click(3, 3, 3)], SMALL, FRAMING) is None


def test_usual_spacing_is_never_much_finer_than_the_voxels() -> None:
    thick = Grid((50, 50, 50), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert usual_spacing(thick, SHAPE, FRAMING) == pytest.approx(FRAMING.finest * 4)
