"""Strokes and lassos: the voxels that a hand goes over, in millimetres, on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.prompts.types import Scribble
from medsam_app.session.strokes import brush_stroke, lasso

SHAPE = (30, 40, 20)
#: Flipped, turned, anisotropic.
GRID = Grid(SHAPE, np.array([[0, -0.8, 0, 3], [1.5, 0, 0, -8], [0, 0, -3.0, 20], [0, 0, 0, 1]]))


def whole(drawn: Patch) -> np.ndarray:
    return drawn.to_array(SHAPE)


def away(*ends) -> np.ndarray:
    """Distance in mm of every voxel to a line through many places."""
    at = np.stack(np.indices(SHAPE), axis=-1) * GRID.spacing
    line = np.linspace(*ends, 400) * GRID.spacing
    return np.min([np.linalg.norm(at - place, axis=-1) for place in line], axis=0)


def test_a_click_of_the_brush_is_a_ball_and_on_a_slice_a_disc():
    ball = away((15, 20, 10), (15, 20, 10)) <= 6
    assert (whole(brush_stroke([(15, 20, 10)], 6, GRID)) == ball).all()
    disc = ball.copy()
    disc[:, :, :10], disc[:, :, 11:] = False, False
    assert (whole(brush_stroke([(15, 20, 10)], 6, GRID, axis=2)) == disc).all()


def test_a_stroke_is_all_that_is_near_its_line():
    ends = ((5.3, 6.1, 4.0), (22.4, 31.2, 15.7))
    far = away(*ends)
    got = whole(brush_stroke(ends, 5, GRID))
    assert got[far < 4.9].all() and not got[far > 5.1].any()


def test_corners_along_a_line_change_nothing_and_none_is_lost():
    ends = np.array([(4, 5, 3), (24, 30, 16)])
    many = np.linspace(*ends, 40)
    assert (whole(brush_stroke(ends, 4, GRID)) == whole(brush_stroke(many, 4, GRID))).all()
    thin = whole(brush_stroke(ends, 0.01, GRID))
    line = Scribble(coordinates=tuple(map(tuple, ends.tolist()))).voxels(SHAPE)
    assert thin[tuple(line.T)].all() and thin.sum() == len(line)
    steps = np.abs(np.diff(line[np.argsort(line[:, 1])], axis=0)).max(axis=1)
    assert steps.max() == 1  # the line has no gaps


def test_strokes_are_cut_at_the_faces():
    assert (whole(brush_stroke([(-2, 20, 10)], 6, GRID)) == (away((-2, 20, 10), (-2, 20, 10)) <= 6)).all()
    with pytest.raises(PromptError, match="outside"):
        brush_stroke([(-20, 20, 10)], 6, GRID)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_lasso_fills_what_it_goes_around(axis):
    u, v = (n for n in range(3) if n != axis)
    turn = np.linspace(0, 4 * np.pi, 400)  # around twice: what is crossed twice is inside all the same
    points = np.full((400, 3), 8.2)
    points[:, u], points[:, v] = 9.5 + 6.3 * np.cos(turn), 10.5 + 5.1 * np.sin(turn)
    got = np.moveaxis(whole(lasso(points, GRID, axis=axis)), axis, 0)
    a, b = np.indices(got.shape[1:])
    inside = ((a - 9.5) / 6.3) ** 2 + ((b - 10.5) / 5.1) ** 2
    assert got[8][inside < 0.995].all() and not got[8][inside > 1.005].any()
    assert got.sum() == got[8].sum()


def test_a_lasso_may_leave_the_image_but_not_miss_it():
    square = np.array([(-5, -5, 3), (4.4, -5, 3), (4.4, 7.5, 3), (-5, 7.5, 3)])
    got = whole(lasso(square, GRID, axis=2))
    assert got[:5, :8, 3].all() and got.sum() == 5 * 8
    for points in (
        [(2.2, 2.2, 3), (2.4, 2.2, 3), (2.3, 2.4, 3)],
        square - (0, 50, 0),
        np.add(square, (0, 0, 40)),
    ):
        with pytest.raises(PromptError, match="lasso"):
            lasso(points, GRID, axis=2)
