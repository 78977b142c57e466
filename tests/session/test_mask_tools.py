"""Mask tools: distances in mm, independence of the axis order, and inverses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam_app.grid.masks import keep_largest
from medsam_app.session.mask_tools import fill_holes, grow, interpolate, smooth

SPACING = (1.5, 0.8, 3.0)


def ball(radius: float, shape=(40, 60, 24), middle=(20, 30, 12), spacing=SPACING) -> np.ndarray:
    sides = zip(np.indices(shape), middle, spacing, strict=True)
    return sum(((a - m) * mm) ** 2 for a, m, mm in sides) <= radius**2


@pytest.mark.parametrize("mm", [0.5, 2.0, 7.0])
def test_growing_equals_thresholding_the_distance_in_mm(mm):
    mask = ball(9) & (np.random.default_rng(0).random((40, 60, 24)) > 0.4)
    distance = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    assert (grow(mask, SPACING, mm) == (distance <= mm)).all()
    depth = ndimage.distance_transform_edt(mask, sampling=SPACING)
    assert (grow(mask, SPACING, -mm) == (depth > mm)).all()


def test_growing_a_point_gives_a_ball_and_shrinking_grows_the_background():
    point = np.zeros((40, 60, 24), bool)
    point[20, 30, 12] = True
    assert (grow(point, SPACING, 6) == ball(6)).all()
    mask = ball(10)
    assert (grow(mask, SPACING, -3) == ~grow(~mask, SPACING, 3)).all()
    assert (grow(grow(mask, SPACING, -3), SPACING, 3) <= mask).all()
    # A mask is not shrunk at the border of the image, and an empty mask stays empty.
    assert grow(np.ones((5, 5, 5), bool), SPACING, -2).all()
    assert not grow(np.zeros((5, 5, 5), bool), SPACING, 2).any()


@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("flip", [0, 2])
def test_tools_do_not_depend_on_axis_order_and_direction(axes, flip):
    mask = ball(9) & ~ball(4, middle=(20, 34, 12))
    turned, spacing = np.flip(mask.transpose(axes), flip), [SPACING[a] for a in axes]
    for tool in (
        lambda m, s: grow(m, s, 2.5),
        lambda m, s: smooth(m, s, 1.5),
        lambda m, s: fill_holes(m),
        lambda m, s: keep_largest(m),
    ):
        assert (tool(turned, spacing) == np.flip(tool(mask, SPACING).transpose(axes), flip)).all()


def test_holes_parts_and_smoothness():
    shell = ball(10) & ~ball(6)
    assert (fill_holes(shell) == ball(10)).all()
    spot = ball(10)
    spot[1, 1, 1] = True
    assert (keep_largest(spot) == ball(10)).all()
    noisy = ball(10) ^ (np.random.default_rng(1).random((40, 60, 24)) > 0.97)
    smoothed = smooth(noisy, SPACING, 1.5)
    assert (smoothed ^ ball(10)).sum() < 0.25 * (noisy ^ ball(10)).sum()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_missing_slices_are_interpolated(axis):
    mask = ball(14, middle=(20, 30, 12))
    sparse = mask & False
    planes = [slice(None)] * 3
    planes[axis] = slice(None, None, (4, 6, 2)[axis])
    sparse[tuple(planes)] = mask[tuple(planes)]
    filled = interpolate(sparse, SPACING, axis)
    first, last = np.flatnonzero(sparse.any(axis=tuple(n for n in range(3) if n != axis)))[[0, -1]]
    expected = np.moveaxis(mask, axis, 0)[first : last + 1]
    actual = np.moveaxis(filled, axis, 0)[first : last + 1]
    assert 2 * (expected & actual).sum() / (expected.sum() + actual.sum()) > 0.94
    assert (filled[tuple(planes)] == sparse[tuple(planes)]).all()
    assert (interpolate(filled, SPACING, axis) == filled).all()


def test_an_oblique_vessel_does_not_break():
    disc = np.hypot(*np.ogrid[-9:10, -9:10]) <= 4
    sparse = np.zeros((11, 60, 19), bool)
    sparse[0, 2:21, :], sparse[10, 34:53, :] = disc, disc  # shifted by more than the diameter
    filled = interpolate(sparse, (1, 1, 1), 0)
    for n in range(11):
        assert filled[n].sum() == pytest.approx(disc.sum(), rel=0.2)
        assert ndimage.center_of_mass(filled[n])[0] == pytest.approx(11 + 3.2 * n, abs=0.6)


def test_only_slices_between_keys_are_recomputed():
    mask = np.zeros((9, 20, 20), bool)
    mask[:, 5:15, 5:15] = True
    mask[2], mask[6] = False, False
    mask[2, 8:12, 8:12] = mask[6, 8:12, 8:12] = True
    result = interpolate(mask, (1, 1, 1), 0, keys=(2, 6))
    assert (result[2:7] == mask[2]).all()
    assert (result[:2] == mask[:2]).all() and (result[7:] == mask[7:]).all()
