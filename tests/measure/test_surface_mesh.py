"""Surfaces in mm: closed, correctly oriented, sized and placed on any grid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.measure.surface_mesh import Surface, surface_of
from tests.measure.test_measurements import GRIDS, grid_of


def ball(grid: Grid, centre, radius: float) -> np.ndarray:
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid.to_world(ijk) - centre, axis=-1) < radius


def assert_closed(surface: Surface) -> None:
    """Assert that every edge has two triangles that traverse it in opposite directions."""
    edges = np.concatenate([surface.triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    forward, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 1).all()
    assert {tuple(edge) for edge in forward.tolist()} == {(b, a) for a, b in forward.tolist()}


@pytest.mark.parametrize("name", GRIDS)
def test_a_ball_has_its_area_and_volume_and_is_closed(name: str) -> None:
    grid = GRIDS[name]
    grid = Grid((70, 60, 40), grid.affine)
    if name == "flipped":
        grid = Grid((70, 40, 60), grid.affine)
    centre = grid.to_world(np.array(grid.shape) / 2 - 0.3)
    inside = ball(grid, centre, 15)
    i, j, k = np.argwhere(inside).min(axis=0).tolist()
    surface = surface_of(Patch((i, j, k), inside[i:, j:, k:]), grid)
    assert_closed(surface)
    assert surface.area_mm2 == pytest.approx(4 * np.pi * 15**2, rel=0.05)
    assert surface.volume_ml == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.03)
    distances = np.linalg.norm(surface.vertices - centre, axis=1)
    assert np.abs(distances - 15).max() < grid.spacing.max()
    # The triangles face outwards.
    a, b, c = (surface.vertices[surface.triangles[:, n]] for n in range(3))
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a - centre) > -1e-3).mean() > 0.99


def test_thin_things_are_kept_and_the_surface_lies_between_voxels() -> None:
    grid = GRIDS["anisotropic"]
    mask = np.zeros((20, 20, 12), bool)
    mask[5, 5, 5] = mask[9, 2:18, 6] = mask[12:18, 12:18, 3] = True
    surface = surface_of(Patch.from_mask(mask), grid)
    assert_closed(surface)
    assert surface.volume_ml > 0
    at = np.rint(grid.to_voxel(surface.vertices)).astype(int)
    grown = ndimage.binary_dilation(mask, np.ones((3, 3, 3)))
    assert grown[tuple(at.T)].all()
    for voxel in ((5, 5, 5), (9, 10, 6), (14, 14, 3)):  # each is inside: some vertex lies within a voxel
        assert np.abs(grid.to_voxel(surface.vertices) - voxel).max(axis=1).min() < 1


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.6, 0.6, 2.5)])
def test_a_million_voxels_become_few_enough_triangles(spacing) -> None:
    grid = grid_of((150, 150, 90), spacing)
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=grid.shape).astype(np.float32), 2)
    mask = noise > np.quantile(noise, 0.5)  # a sponge has close to the largest possible surface
    assert mask.sum() >= 1_000_000
    surface = surface_of(Patch.from_mask(mask), grid)
    assert 50_000 < len(surface.triangles) <= 150_000
    assert surface.volume_ml == pytest.approx(mask.sum() * grid.voxel_volume_ml, rel=0.15)


def test_nothing_has_no_surface() -> None:
    surface = surface_of(Patch((0, 0, 0), np.zeros((3, 3, 3), bool)), GRIDS["plain"])
    assert surface.vertices.shape == surface.triangles.shape == (0, 3)
    assert surface.area_mm2 == surface.volume_ml == 0
