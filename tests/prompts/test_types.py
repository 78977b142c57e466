"""Prompts: contents, rejected values, and lossless packing of masks."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.prompts.types import Box, MaskPrompt, Point, Prompt, check_prompts, format_voxel

GRID = Grid((10, 20, 30), np.diag([2.0, 2.0, 3.0, 1.0]))


def test_prompts_are_immutable_and_equal_by_value():
    point = Point(coordinates=(1, 2, 3))
    assert point.positive and point == Point(coordinates=(1.0, 2.0, 3.0))
    assert hash(point) == hash(Point(coordinates=(1, 2, 3)))
    with pytest.raises(ValidationError):
        point.positive = False  # type: ignore[misc]


@pytest.mark.parametrize("bad", [(1, 2), (1, 2, 3, 4), (1, 2, np.nan), (1, 2, np.inf), (1, "x", 3)])
def test_points_refuse_what_is_no_place(bad):
    with pytest.raises(ValidationError):
        Point(coordinates=bad)


def test_box_corners_may_come_in_any_order():
    box = Box(lower=(5, 2, 9), upper=(1, 8, 3))
    assert box.lower == (1, 2, 3) and box.upper == (5, 8, 9)
    assert box == Box(lower=(1, 2, 3), upper=(5, 8, 9))


@pytest.mark.parametrize(
    ("lower", "upper", "axis"),
    [
        ((1, 2, 3), (5, 8, 9), None),
        ((1, 2, 4), (5, 8, 4), 2),
        ((3, 2, 3), (3, 8, 9), 0),
        ((1, 4, 3), (5, 4.3, 9), 1),
    ],
)
def test_box_knows_the_slice_it_lies_on(lower, upper, axis):
    assert Box(lower=lower, upper=upper).slice_axis == axis


def test_box_flat_along_two_axes_lies_on_no_one_slice():
    assert Box(lower=(1, 2, 3), upper=(1, 2, 9)).slice_axis is None


@pytest.mark.parametrize("seed", range(4))
def test_mask_comes_back_as_it_was(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((10, 20, 30), dtype=np.uint8)
    mask[2:9, 3 : 5 + seed * 3, 7:8] = rng.integers(0, 5, (7, 2 + seed * 3, 1))
    mask[4, 3, 7] = 1
    before = mask.copy()
    prompt = MaskPrompt.from_array(mask)
    np.testing.assert_array_equal(prompt.to_array(), mask != 0)
    np.testing.assert_array_equal(mask, before)
    assert prompt.start[2] == 7 and prompt.stop[2] == 8


def test_mask_refuses_nothing_and_flat():
    with pytest.raises(PromptError, match="empty"):
        MaskPrompt.from_array(np.zeros((4, 4, 4)))
    with pytest.raises(PromptError, match="must be 3D"):
        MaskPrompt.from_array(np.ones((4, 4)))


def test_mask_cut_short_is_noticed():
    prompt = MaskPrompt.from_array(np.random.default_rng(0).integers(0, 2, (20, 20, 20)))
    longer = prompt.model_copy(update={"shape": (40, 20, 20), "stop": (40, 20, 20)})
    with pytest.raises(PromptError, match="cut short"):
        longer.to_array()


@pytest.mark.parametrize(
    "prompt",
    [
        Point(coordinates=(1, 2.5, 3), positive=False),
        Box(lower=(0, 0, 0), upper=(3, 3, 3)),
        MaskPrompt.from_array(np.ones((2, 3, 4))),
    ],
)
def test_json_round_trip_keeps_the_kind(prompt):
    adapter = TypeAdapter(Prompt)
    assert adapter.validate_json(adapter.dump_json(prompt)) == prompt


@pytest.mark.parametrize("at", [(-0.5, 0, 0), (9.5, 19.5, 29.5), (0, 0, 0), (9, 19, 29)])
def test_half_a_voxel_beyond_the_centres_is_inside(at):
    check_prompts([Point(coordinates=at)], GRID)


@pytest.mark.parametrize("at", [(-0.51, 0, 0), (10, 0, 0), (0, 19.6, 0), (0, 0, 1e9)])
def test_outside_is_said_with_the_number_of_the_prompt(at):
    good = Point(coordinates=(1, 1, 1))
    with pytest.raises(PromptError, match=r"Prompt 2, a point at .* outside the image.*\(9, 19, 29\)"):
        check_prompts([good, Point(coordinates=at)], GRID)
    with pytest.raises(PromptError, match="Prompt 2, a box corner"):
        check_prompts([good, Box(lower=(0, 0, 0), upper=tuple(abs(a) + 11 for a in at))], GRID)


def test_mask_of_another_shape_is_refused():
    with pytest.raises(PromptError, match=r"shape \(2, 3, 4\).*\(10, 20, 30\)"):
        check_prompts([MaskPrompt.from_array(np.ones((2, 3, 4)))], GRID)


def test_voxels_are_written_short():
    assert format_voxel((12.0, 7.5, 30)) == "(12, 7.5, 30)"
