"""Patches: operations on them equal the same operations on complete volumes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam_app.grid.patch import Corners, Index, Patch, box_slices, enclosing_box, mask_bounds

SHAPE = (9, 8, 7)
#: Boxes that overlap, enclose or miss each other, at each end of the volume, and without voxels.
BOXES: list[Corners] = [
    ((2, 3, 1), (6, 5, 4)),
    ((0, 0, 0), (3, 4, 5)),
    ((5, 4, 3), SHAPE),
    ((0, 0, 0), SHAPE),
    ((4, 4, 4), (5, 5, 5)),
    ((0, 2, 0), (9, 3, 7)),
    ((3, 3, 3), (3, 5, 5)),
    ((0, 0, 0), (0, 0, 0)),
]


def patches(share: float = 0.5, seed: int = 0) -> Iterator[Patch]:
    """Yield patches of random voxels, one for each box."""
    rng = np.random.default_rng(seed)
    for start, stop in BOXES:
        yield Patch(start, rng.random(np.subtract(stop, start)) < share)


def pairs() -> Iterator[tuple[Patch, Patch]]:
    for share in (0.0, 0.1, 0.6, 1.0):
        for a in patches(share):
            for b in patches(0.5, seed=1):
                yield a, b


def whole(patch: Patch) -> NDArray[np.bool_]:
    return patch.to_array(SHAPE)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[Index, Index] | None:
    at = np.argwhere(mask)
    return (tuple(at.min(axis=0)), tuple(at.max(axis=0) + 1)) if len(at) else None  # type: ignore[return-value]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_cut_to_its_bounding_box_and_placed_a_mask_is_the_same(share: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        mask = rng.random(SHAPE) < share
        before = mask.copy()
        patch = Patch.from_mask(mask)
        assert (whole(patch) == before).all() and (mask == before).all()
        assert patch.corners == (bounding_box(mask) or ((0, 0, 0), (0, 0, 0)))
        assert patch.voxels == mask.sum()
        assert all(type(value) is int for value in (*patch.start, *patch.stop))


def test_the_bounding_box_of_a_patch() -> None:
    for share in (0.0, 0.05, 0.5, 1.0):
        for patch in patches(share):
            tight = patch.tight()
            assert (whole(tight) == whole(patch)).all()
            assert tight.corners == (bounding_box(whole(patch)) or ((0, 0, 0), (0, 0, 0)))
            assert not tight.mask.size or tight.tight() is tight  # no copy, since every click passes here
    assert Patch.empty().corners == ((0, 0, 0), (0, 0, 0)) and not Patch.empty().voxels


def test_a_patch_on_other_boxes() -> None:
    for patch in patches():
        assert patch.within(patch.corners) is patch.mask
        for corners in BOXES:
            expected = whole(patch)[box_slices(*corners)]
            assert np.array_equal(patch.within(corners), expected)
            part = patch.cropped(corners)
            assert np.array_equal(part.within(corners), expected)
            assert part.mask.size == 0 or np.shares_memory(part.mask, patch.mask)


def test_values_at_voxels_inside_and_outside_of_the_box() -> None:
    for patch in patches():
        expected = np.pad(whole(patch), 1)
        for voxel in np.ndindex(expected.shape):
            assert patch.value_at(np.subtract(voxel, 1).tolist()) == expected[voxel]


def test_on_a_box_around_both_a_union_is_the_or_of_two_arrays() -> None:
    for a, b in pairs():
        box = enclosing_box(a.corners, b.corners)
        union = Patch(box[0], a.within(box) | b.within(box))
        assert np.array_equal(whole(union), whole(a) | whole(b))
    assert enclosing_box() == enclosing_box(((4, 4, 4), (4, 5, 5))) == ((0, 0, 0), (0, 0, 0))
    assert enclosing_box(((4, 4, 4), (4, 5, 5)), ((6, 1, 2), (7, 2, 3))) == ((6, 1, 2), (7, 2, 3))


def test_a_mask_without_others() -> None:
    for a, b in pairs():
        difference = a.without(b)
        assert difference.corners == a.corners and np.array_equal(whole(difference), whole(a) & ~whole(b))
    first, *others = patches()
    rest = ~np.logical_or.reduce([whole(other) for other in others])
    assert np.array_equal(whole(first.without(*others)), whole(first) & rest)
    assert np.array_equal(first.without().mask, first.mask)


def test_the_box_of_a_difference() -> None:
    for a, b in pairs():
        assert a.difference(b) == b.difference(a) == bounding_box(whole(a) != whole(b))
        assert a.difference(a.tight()) is None


def test_one_patch_over_another() -> None:
    for a, b in pairs():
        expected = whole(a)
        expected[b.slices] = b.mask
        assert np.array_equal(whole(a.overlaid(b)), expected)


@pytest.mark.parametrize("value", [True, False])
def test_voxels_that_are_set(value: bool) -> None:
    rng = np.random.default_rng(3)
    for patch in patches():
        voxels = rng.integers(0, SHAPE, (5, 3))
        expected = whole(patch)
        expected[tuple(voxels.T)] = value
        changed = patch.with_voxels(voxels, value)
        assert np.array_equal(whole(changed), expected)
        assert changed.with_voxels(voxels, value) is changed


def test_no_operation_changes_what_it_is_given() -> None:
    for a, b in pairs():
        masks = a.mask.copy(), b.mask.copy()
        a.overlaid(b), a.without(b), a.difference(b), a.tight()
        a.with_voxels(np.array([[1, 2, 3], [8, 7, 6]]), True)
        assert np.array_equal(a.mask, masks[0]) and np.array_equal(b.mask, masks[1])
        with pytest.raises(ValueError, match="read-only"):
            a.mask[...] = True
    array = np.zeros((2, 2, 2), dtype=bool)
    assert np.shares_memory(Patch((0, 0, 0), array).mask, array) and array.flags.writeable


def test_slices_of_a_box_in_an_array_that_begins_elsewhere() -> None:
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    part = array[box_slices((12, 21, 33), (14, 24, 36), origin=(10, 20, 30))]
    assert np.array_equal(part, array[2:4, 1:4, 3:6])


def test_bounds_are_those_of_all_voxels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(rng.integers(0, 6, 3)) < rng.choice([0.05, 0.3, 0.9])
        for seen in (mask, np.moveaxis(mask, 0, 2)):
            assert mask_bounds(seen) == bounding_box(seen)
