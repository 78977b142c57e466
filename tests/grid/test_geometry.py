"""Grids, and the mapping to the axis order closest to RAS."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medsam_app.grid.geometry import Grid, RasView, flip_affine, flip_points, format_mm

SHAPE = (4, 5, 6)
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], *, tilt: float = 0.0) -> np.ndarray:
    """Return an affine whose file axis `order[a]` runs along world axis a with a sign; optionally oblique."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for world, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (1.0 + 0.5 * axis)
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (10, -20, 30)
    return affine


def test_there_are_48_orientations():
    assert len(ORIENTATIONS) == 48
    assert len({Grid(SHAPE, affine_of(*orientation)).orientation for orientation in ORIENTATIONS}) == 48


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_ras_view_round_trip_and_points(order, signs):
    grid = Grid(SHAPE, affine_of(order, signs, tilt=0.2))
    view = RasView.of(grid)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turned = view.from_file(array)
    assert turned.shape == view.shape
    assert np.shares_memory(turned, array)
    back = view.to_file(turned)
    assert np.array_equal(back, array)
    assert back.strides == array.strides
    assert back.__array_interface__["data"] == array.__array_interface__["data"]
    # a point maps to the voxel with the same value
    points = np.random.default_rng(0).integers(0, SHAPE, (20, 3))
    mapped = view.points_from_file(points)
    assert np.array_equal(turned[tuple(mapped.astype(int).T)], array[tuple(points.T)])
    assert np.array_equal(view.points_to_file(mapped), points)
    # and in the new order the axes point to R, A, S
    step = grid.to_world(view.points_to_file(np.eye(3))) - grid.to_world(view.points_to_file(np.zeros(3)))
    assert (np.diag(step) > 0).all()
    assert np.array_equal(np.abs(step).argmax(axis=1), [0, 1, 2])
    assert np.allclose(view.spacing, np.linalg.norm(step, axis=1))


def test_points_do_not_change_the_input():
    view = RasView.of(Grid(SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0])))
    points = np.array([[1.0, 2.0, 3.0]])
    view.points_to_file(points)
    view.points_from_file(points)
    assert points.tolist() == [[1.0, 2.0, 3.0]]


def test_world_and_voxel_are_inverse():
    grid = Grid(SHAPE, affine_of((1, 2, 0), (1, -1, 1), tilt=0.4))
    points = np.random.default_rng(1).uniform(-5, 5, (30, 3))
    assert np.allclose(grid.to_voxel(grid.to_world(points)), points)
    assert np.isclose(grid.voxel_volume_ml, 1.0 * 1.5 * 2.0 / 1000)


def test_contains_half_a_voxel_beyond_the_centres():
    grid = Grid(SHAPE, np.eye(4))
    inside = grid.contains([[-0.5, 0, 0], [3.5, 4.5, 5.5], [-0.6, 0, 0], [0, 0, 5.6]])
    assert inside.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.eye(4), None),
        (np.diag([1.0, 1.0, 1.001, 1.0]), None),
        (np.diag([1.0, 1.0, 1.5, 1.0]), "spacing"),
        (np.diag([-1.0, 1.0, 1.0, 1.0]), "orientation"),
        (np.eye(4) + 3 * np.eye(4, k=3), "3.00 mm"),
    ],
)
def test_difference(change, words):
    grid = Grid(SHAPE, np.eye(4))
    description = grid.difference(Grid(SHAPE, change))
    assert (description is None) if words is None else (words in description)


def test_difference_of_shape_comes_first():
    assert "shape (4, 5, 7)" in Grid(SHAPE, np.eye(4)).difference(Grid((4, 5, 7), 2 * np.eye(4)))


def test_singular_affine_has_no_view():
    with pytest.raises(ValueError, match="singular"):
        RasView.of(Grid(SHAPE, np.diag([1.0, 1.0, 0.0, 1.0])))


def test_format_mm():
    assert format_mm([0.7, 0.7, 2]) == "0.70 x 0.70 x 2.00 mm"


def test_lps_and_ras_differ_in_the_sign_of_two_axes():
    assert np.array_equal(flip_points([[1, 2, 3], [-4, 5, -6]]), [[-1, -2, 3], [4, -5, -6]])
    ras = Grid(SHAPE, affine_of((1, 0, 2), (1, -1, 1), tilt=0.3))
    lps = Grid(SHAPE, flip_affine(ras.affine))
    assert lps.orientation != ras.orientation
    assert np.array_equal(flip_affine(lps.affine), ras.affine)
    points = np.random.default_rng(0).normal(size=(50, 3)) * 100
    assert np.array_equal(flip_points(flip_points(points)), points)
    assert np.allclose(flip_points(lps.to_world(points)), ras.to_world(points), rtol=0, atol=1e-9)
