"""Windows: reading from and writing to volumes on all kinds of grids."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import (
    Roi,
    file_box,
    interpolation_matrix,
    mask_from_logits,
    move_values,
    read_roi,
    write_box,
)


def _affine(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    affine[:3, 3] = (5, -7, 11)
    return affine


ORIENTATIONS = [(o, s) for o in permutations(range(3)) for s in product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_window_of_the_whole_volume_is_the_volume(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """At the volume's own spacing a window reads and writes every voxel exactly."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(16, 16, 16)).astype(np.float32)
    grid = Grid(array.shape, _affine(order, signs, (2.0, 2.0, 2.0)))
    roi = Roi.centred((7.5, 7.5, 7.5), 2.0, (16, 16, 16), grid.ras)
    image, valid = read_roi(array, roi)
    assert valid.all()
    np.testing.assert_allclose(image.numpy(), grid.ras.from_file(array), atol=1e-5)
    np.testing.assert_allclose(write_box(image, roi, (0, 0, 0), array.shape), array, atol=1e-5)


def test_points_and_voxels_agree_on_an_oblique_anisotropic_grid() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.9, 5.0])
    grid = Grid((60, 50, 14), affine)
    array = np.zeros(grid.shape, dtype=np.int16)
    array[31, 22, 6] = 1000
    roi = Roi.centred(grid.ras.points_from_file((31, 22, 6)), 1.0, (32, 32, 32), grid.ras)
    image, _ = read_roi(array, roi)
    brightest = np.unravel_index(int(image.argmax()), image.shape)
    assert np.abs(np.array(brightest) - roi.to_roi((31, 22, 6))).max() <= 0.5 + 1e-6
    np.testing.assert_allclose(roi.to_file(roi.to_roi((3.0, 4.0, 5.0))), (3, 4, 5), atol=1e-9)


def test_coarse_window_averages_and_does_not_alias() -> None:
    array = np.indices((64, 64, 64)).sum(axis=0) % 2 * 100.0
    grid = Grid(array.shape, np.eye(4))
    image, _ = read_roi(array, Roi.centred((31.5,) * 3, 4.0, (16, 16, 16), grid.ras))
    assert float((image[1:-1, 1:-1, 1:-1] - 50).abs().max()) < 3


def test_beyond_the_volume_is_not_valid() -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    image, valid = read_roi(
        np.full((8, 8, 8), 7, dtype=np.int16), Roi.centred((3.5,) * 3, 1.0, (16,) * 3, grid.ras)
    )
    assert int(valid.sum()) == 8**3
    assert bool((image[valid] == 7).all())


def test_rows_of_an_interpolation_sum_to_one_and_a_line_stays_a_line() -> None:
    positions = np.linspace(2, 17, 7)
    matrix = interpolation_matrix(positions, 2.5, 0, 20)
    torch.testing.assert_close(matrix.sum(1), torch.ones(7))
    np.testing.assert_allclose((matrix @ torch.arange(20.0)).numpy()[1:-1], positions[1:-1], atol=0.1)


def test_mask_of_a_ball_keeps_its_size_on_the_files_grid() -> None:
    grid = Grid((80, 80, 30), np.diag([-1.0, 1.0, 3.0, 1.0]))
    roi = Roi.centred((40, 40, 15), 1.5, (48, 48, 48), grid.ras)
    axes = torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij")
    distance = sum((a - 23.5) ** 2 for a in axes) ** 0.5 * 1.5  # mm
    patch = mask_from_logits(20.0 - distance, roi)
    volume = patch.voxels * 3.0
    assert volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.03)
    low, high = file_box(roi, (0, 0, 0), (47, 47, 47))
    assert all(a <= b for a, b in zip(low, patch.start, strict=True))
    assert all(b <= h for b, h in zip(patch.stop, high, strict=True))


def test_moving_values_between_windows() -> None:
    grid = Grid((64, 64, 64), np.eye(4))
    source = Roi.centred((32, 32, 32), 1.0, (32, 32, 32), grid.ras)
    values = torch.rand(32, 32, 32)
    assert torch.equal(move_values(values, source, source, fill=-9), values)
    wide = Roi.centred((32, 32, 32), 2.0, (32, 32, 32), grid.ras)
    moved = move_values(values, source, wide, fill=-9)
    assert float(moved[0, 0, 0]) == -9
    assert float(moved[16, 16, 16]) > 0


def test_a_mask_made_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (23, 17, 19)
    grid = Grid(shape=shape, affine=_affine((2, 0, 1), (-1, 1, -1), (1.0, 2.0, 0.7)))
    roi = Roi.centred(np.asarray(grid.ras.shape) / 2, 1.3, (16, 16, 16), grid.ras)
    logits = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    complete = mask_from_logits(logits, roi)
    monkeypatch.setattr("medsam_app.grid.roi.PATCH_VOXELS", 1)  # one row at a time
    patch = mask_from_logits(logits, roi)
    assert patch.start == complete.start and patch.mask.shape[0] > 5
    np.testing.assert_array_equal(patch.mask, complete.mask)
