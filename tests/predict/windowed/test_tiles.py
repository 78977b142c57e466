"""Tiles: they cover the outline, change nothing away from it, and are correctly placed on any grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.grid.roi import Roi, fitting_spacing, mask_from_logits, read_roi
from medsam_app.predict.windowed.tiles import UNCERTAIN, Mosaic, plan_tiles, sure_of

SHAPE = (32, 32, 32)
AFFINES = {
    "ras": np.diag([1.0, 1.0, 1.0, 1.0]),
    "flipped": np.array([[-1.0, 0, 0, 9], [0, -1.0, 0, -5], [0, 0, 1.0, 2], [0, 0, 0, 1]]),
    "permuted, thick slices": np.array([[0, 0, 3.0, 0], [-0.9, 0, 0, 7], [0, 0.9, 0, 0], [0, 0, 0, 1]]),
}


def _bumpy(affine: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Return a large object with a wavy surface."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(n) for n in np.round(110 / spacing))
    lines = [(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*lines, indexing="ij", sparse=True)
    radius = np.sqrt(x**2 + y**2 + z**2)
    waves = 3.5 * np.sin(x / 4) * np.cos(y / 5) * np.cos(z / 6)
    return radius + waves < 42, Grid(shape, affine)  # type: ignore[arg-type]


def _coarse(truth: np.ndarray, grid: Grid) -> tuple[torch.Tensor, Roi]:
    spacing = fitting_spacing(grid, SHAPE)
    roi = Roi.centred(np.array(grid.ras.shape) / 2, (spacing,) * 3, SHAPE, grid.ras)
    return read_roi(truth, roi)[0] * 10 - 5, roi


def _planned(name: str) -> tuple[np.ndarray, torch.Tensor, Roi, Mosaic]:
    truth, grid = _bumpy(AFFINES[name])
    logits, roi = _coarse(truth, grid)
    mosaic = plan_tiles(logits, roi, grid, finest=0.7, fill=-6.0)
    assert mosaic is not None
    return truth, logits, roi, mosaic


def _dice(patch: Patch, truth: np.ndarray) -> float:
    mask = patch.to_array(truth.shape)
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


@pytest.mark.parametrize("name", AFFINES)
def test_tiles_that_see_the_truth_bring_it_to_the_file(name: str) -> None:
    truth, logits, roi, mosaic = _planned(name)
    fine = mosaic.redrawn(lambda tile, sure, number: read_roi(truth, tile)[0] * 10 - 5)
    before = _dice(mask_from_logits(logits, roi), truth)
    after = _dice(mask_from_logits(fine, mosaic.roi), truth)
    assert 1 - after < 0.6 * (1 - before)


@pytest.mark.parametrize("name", AFFINES)
def test_every_voxel_in_doubt_lies_in_a_tile_and_no_tile_is_idle(name: str) -> None:
    *_, mosaic = _planned(name)
    seen = np.zeros(mosaic.sure.shape, dtype=bool)
    for corner in mosaic.tiles:
        assert (mosaic.sure[mosaic.cut(corner)] == 0).any()
        seen[mosaic.cut(corner)] = True
    assert seen[mosaic.sure == 0].all()


def test_tiles_that_see_nothing_new_change_nothing() -> None:
    *_, mosaic = _planned("flipped")
    same = mosaic.redrawn(lambda tile, sure, number: mosaic.logits[mosaic.cut(mosaic.tiles[number])])
    torch.testing.assert_close(same, mosaic.logits, atol=1e-4, rtol=1e-4)


def test_tiles_that_go_wrong_change_nothing_away_from_the_outline() -> None:
    *_, mosaic = _planned("ras")
    wild = mosaic.redrawn(lambda tile, sure, number: torch.full(tile.shape, 99.0 * (-1) ** number))
    sure = torch.from_numpy(mosaic.sure != 0)
    assert torch.equal(wild[sure], mosaic.logits[sure])
    assert not torch.equal(wild, mosaic.logits)


def test_nothing_to_refine() -> None:
    truth, grid = _bumpy(AFFINES["ras"])
    logits, roi = _coarse(truth, grid)
    assert plan_tiles(torch.full(SHAPE, -1.0), roi, grid, finest=0.7, fill=-6.0) is None
    assert plan_tiles(logits, roi, grid, finest=0.9 * roi.spacing[0], fill=-6.0) is None


def test_what_is_sure_keeps_away_from_the_outline() -> None:
    mask = np.zeros((40, 20, 20), dtype=bool)
    mask[:20] = True  # the mask reaches four faces of the window, which are no outline
    sure = sure_of(mask)
    assert (sure[: 20 - UNCERTAIN] == 1).all()
    assert (sure[20 - UNCERTAIN : 20 + UNCERTAIN] == 0).all()
    assert (sure[20 + UNCERTAIN :] == -1).all()
