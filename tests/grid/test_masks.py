"""Connected parts and agreement of masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam_app.grid.masks import FULL_NEIGHBOURHOOD, dice, keep_largest


def test_dice_of_two_boxes() -> None:
    a, b = np.zeros((2, 6, 6, 6), dtype=bool)
    assert dice(a, b) == 1.0
    a[:4, :4, :4] = True
    assert dice(a, b) == 0.0 and dice(a, a) == 1.0
    b[2:, :4, :4] = True
    assert dice(a, b) == dice(b, a) == pytest.approx(2 * 32 / (64 + 64))


@pytest.mark.parametrize("axes", [2, 3])
def test_the_largest_part_hangs_together_by_faces(axes: int) -> None:
    mask = np.zeros((8,) * axes, dtype=bool)
    assert not keep_largest(mask).any()
    mask[(slice(0, 3),) * axes] = True
    large = mask.copy()
    mask[(3,) * axes] = True  # touches only at a corner
    mask[(slice(6, 8),) * axes] = True
    before = mask.copy()
    assert np.array_equal(keep_largest(mask), large) and np.array_equal(mask, before)
    assert not np.shares_memory(keep_largest(large), large)


def test_voxels_that_touch_by_a_corner_are_neighbours_in_full() -> None:
    assert np.array_equal(FULL_NEIGHBOURHOOD, ndimage.generate_binary_structure(3, 3))
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert ndimage.label(mask, structure=FULL_NEIGHBOURHOOD)[1] == 1 < ndimage.label(mask)[1]
