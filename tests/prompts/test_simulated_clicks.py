"""Simulated clicks against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam_app.prompts.simulated_clicks import click_inside, depth, largest_component, next_click


def _cube(low: int, high: int, n: int = 20) -> np.ndarray:
    mask = np.zeros((n, n, n), dtype=bool)
    mask[low:high, low:high, low:high] = True
    return mask


def test_first_click_is_the_middle() -> None:
    assert click_inside(_cube(5, 12)) == (8, 8, 8)


def test_depth_is_in_mm_and_the_border_counts_as_outside() -> None:
    slab = np.ones((3, 9, 9), dtype=bool)
    assert depth(slab, (4.0, 1.0, 1.0))[1, 4, 4] == 5.0
    assert depth(slab, (1.0, 1.0, 1.0))[1, 4, 4] == 2.0


def test_next_click_goes_to_the_larger_error_with_its_sign() -> None:
    truth, mask = _cube(2, 9), _cube(2, 9)
    mask[12:18, 12:18, 12:18] = True  # added: 216 voxels
    mask[2:4, 2:4, 2:4] = False  # missed: 8 voxels
    voxel, positive = next_click(mask, truth)  # type: ignore[misc]
    assert not positive
    assert mask[voxel]
    assert not truth[voxel]
    assert depth(mask & ~truth)[voxel] == 3
    voxel, positive = next_click(truth & mask, truth)  # type: ignore[misc]
    assert positive
    assert truth[voxel]


def test_nothing_to_correct() -> None:
    assert next_click(_cube(3, 8), _cube(3, 8)) is None


def test_hurried_clicks_stay_in_the_error_and_repeat_with_their_seed() -> None:
    region = _cube(3, 8)
    clicks = [click_inside(region, rng=np.random.default_rng(seed)) for seed in range(20)]
    assert all(region[voxel] for voxel in clicks)
    assert len(set(clicks)) > 5
    assert clicks == [click_inside(region, rng=np.random.default_rng(seed)) for seed in range(20)]


def test_largest_component_is_joined_across_corners() -> None:
    region = np.zeros((6, 6, 6), dtype=bool)
    region[0, 0, 0] = region[1, 1, 1] = region[5, 5, 5] = True
    part, box = largest_component(region)
    assert part.sum() == 2
    assert box == (slice(0, 2), slice(0, 2), slice(0, 2))
    with pytest.raises(ValueError, match="empty"):
        largest_component(np.zeros((2, 2, 2), dtype=bool))


def test_room_around_the_error_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        truth, mask = (ndimage.gaussian_filter(rng.normal(size=(14, 12, 10)), 1.5) > 0.05 for _ in range(2))
        voxel, positive = next_click(mask, truth, spacing=(1.0, 2.0, 3.0))  # type: ignore[misc]
        padded = next_click(np.pad(mask, 4), np.pad(truth, 4), spacing=(1.0, 2.0, 3.0))
        assert padded == (tuple(v + 4 for v in voxel), positive)
