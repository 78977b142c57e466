"""Brush strokes and lassos: the covered voxels, in mm, on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.prompts.types import Scribble
from medsam_app.session.strokes import brush_stroke, lasso

SHAPE = (30, 40, 20)
#: Flipped, rotated and anisotropic.
GRID = Grid(SHAPE, np.array([[0, -0.8, 0, 3], [1.5, 0, 0, -8], [0, 0, -3.0, 20], [0, 0, 0, 1]]))


def to_mask(drawn: Patch) -> np.ndarray:
    return drawn.to_array(SHAPE)


def distance_to_line(*ends) -> np.ndarray:
    """Return the distance in mm of every voxel to the line between two points."""
    positions = np.stack(np.indices(SHAPE), axis=-1) * GRID.spacing
    line = np.linspace(*ends, 400) * GRID.spacing
    return np.min([np.linalg.norm(positions - point, axis=-1) for point in line], axis=0)


def test_a_dot_of_the_brush_is_a_ball_or_on_a_slice_a_disc():
    ball = distance_to_line((15, 20, 10), (15, 20, 10)) <= 6
    assert (to_mask(brush_stroke([(15, 20, 10)], 6, GRID)) == ball).all()
    disc = ball.copy()
    disc[:, :, :10], disc[:, :, 11:] = False, False
    assert (to_mask(brush_stroke([(15, 20, 10)], 6, GRID, axis=2)) == disc).all()


def test_a_stroke_covers_all_voxels_near_its_line():
    ends = ((5.3, 6.1, 4.0), (22.4, 31.2, 15.7))
    distance = distance_to_line(*ends)
    mask = to_mask(brush_stroke(ends, 5, GRID))
    assert mask[distance < 4.9].all() and not mask[distance > 5.1].any()


def test_extra_corners_on_a_line_change_nothing_and_thin_lines_have_no_gaps():
    ends = np.array([(4, 5, 3), (24, 30, 16)])
    many = np.linspace(*ends, 40)
    assert (to_mask(brush_stroke(ends, 4, GRID)) == to_mask(brush_stroke(many, 4, GRID))).all()
    thin = to_mask(brush_stroke(ends, 0.01, GRID))
    line = Scribble(coordinates=tuple(map(tuple, ends.tolist()))).voxels(SHAPE)
    assert thin[tuple(line.T)].all() and thin.sum() == len(line)
    steps = np.abs(np.diff(line[np.argsort(line[:, 1])], axis=0)).max(axis=1)
    assert steps.max() == 1  # the line has no gaps


def test_strokes_are_clipped_to_the_image():
    ball = distance_to_line((-2, 20, 10), (-2, 20, 10)) <= 6
    assert (to_mask(brush_stroke([(-2, 20, 10)], 6, GRID)) == ball).all()
    with pytest.raises(PromptError, match="outside"):
        brush_stroke([(-20, 20, 10)], 6, GRID)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_lasso_fills_its_inside(axis):
    u, v = (n for n in range(3) if n != axis)
    turn = np.linspace(0, 4 * np.pi, 400)  # two turns: the winding number 2 also means inside
    points = np.full((400, 3), 8.2)
    points[:, u], points[:, v] = 9.5 + 6.3 * np.cos(turn), 10.5 + 5.1 * np.sin(turn)
    mask = np.moveaxis(to_mask(lasso(points, GRID, axis=axis)), axis, 0)
    a, b = np.indices(mask.shape[1:])
    inside = ((a - 9.5) / 6.3) ** 2 + ((b - 10.5) / 5.1) ** 2
    assert mask[8][inside < 0.995].all() and not mask[8][inside > 1.005].any()
    assert mask.sum() == mask[8].sum()


def test_a_lasso_may_leave_but_not_miss_the_image():
    square = np.array([(-5, -5, 3), (4.4, -5, 3), (4.4, 7.5, 3), (-5, 7.5, 3)])
    mask = to_mask(lasso(square, GRID, axis=2))
    assert mask[:5, :8, 3].all() and mask.sum() == 5 * 8
    for points in (
        [(2.2, 2.2, 3), (2.4, 2.2, 3), (2.3, 2.4, 3)],
        square - (0, 50, 0),
        np.add(square, (0, 0, 40)),
    ):
        with pytest.raises(PromptError, match="lasso"):
            lasso(points, GRID, axis=2)
