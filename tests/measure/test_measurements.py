"""Measurements against closed forms and brute force over all pairs."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.measure.diameters import PLANES, longest_diameter, sides
from medsam_app.measure.measurements import AREA_COLUMNS, COLUMNS, area_table, measure, object_table


def grid_of(shape: tuple[int, int, int], spacing=(1.0, 1.0, 1.0), turn=(0, 0, 0), shear: float = 0.0) -> Grid:
    affine = np.eye(4)
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    affine[:3, :3] = axes @ np.array([[1, 0, 0], [0, 1, shear], [0, 0, 1]])
    affine[:3, 3] = (-40, 12, 7)
    return Grid(shape, affine)


#: Rotated by 25 degrees, flipped and permuted (LSP), and with a gantry tilt.
GRIDS = {
    "plain": grid_of((30, 26, 22)),
    "anisotropic": grid_of((30, 26, 22), (0.7, 0.9, 3.0)),
    "oblique": grid_of((30, 26, 22), (0.7, 0.9, 3.0), turn=(25, -15, 10)),
    "flipped": Grid(
        (30, 26, 22), np.array([[-0.7, 0, 0, 9], [0, 0, 3.0, 8], [0, -0.9, 0, 7], [0, 0, 0, 1.0]])
    ),
    "tilted": grid_of((30, 26, 22), (0.7, 0.9, 3.0), turn=(5, 0, 0), shear=0.3),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_a_diameter_is_the_longest_of_all_pairs(name: str) -> None:
    grid, rng = GRIDS[name], np.random.default_rng(3)
    start, mask = (4, 5, 6), rng.random((9, 8, 7)) > 0.75
    for plane, ras_axis in PLANES.items():
        axis = grid.ras.axes[ras_axis]
        longest = []
        for number in range(mask.shape[axis]):
            flat = sides(mask.take(number, axis))
            ijk = np.insert(flat, axis, number, axis=1) + start
            longest.append(pdist(grid.to_world(ijk)).max())
        diameter = longest_diameter(Patch(start, mask), grid, plane)
        assert diameter is not None
        assert diameter.length_mm == pytest.approx(max(longest))
        assert diameter.slice == start[axis] + int(np.argmax(longest))
        ends, across = (grid.to_world(pair) for pair in (diameter.ends, diameter.across_ends))
        assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(diameter.length_mm)
        assert np.linalg.norm(across[1] - across[0]) == pytest.approx(diameter.across_mm)
        assert (ends[1] - ends[0]) @ (across[1] - across[0]) == pytest.approx(0, abs=1e-9)
        assert all(pair[axis] == diameter.slice for pair in (*diameter.ends, *diameter.across_ends))


@pytest.mark.parametrize("name", ["plain", "anisotropic", "oblique", "tilted"])
def test_an_ellipse_has_its_two_axes(name: str) -> None:
    plan = GRIDS[name]
    grid = Grid((80, 70, 3), plan.affine)
    ij = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    centre = grid.to_world((40.3, 34.6, 1))
    along, across = (plan.affine[:3, axis] / np.linalg.norm(plan.affine[:3, axis]) for axis in (0, 1))
    across = across - (across @ along) * along
    across /= np.linalg.norm(across)
    turned = np.cos(0.5) * along + np.sin(0.5) * across, np.cos(0.5) * across - np.sin(0.5) * along
    offsets = grid.to_world(ij) - centre
    inside = (offsets @ turned[0] / 20) ** 2 + (offsets @ turned[1] / 11) ** 2 <= 1
    inside[:, :, [0, 2]] = False
    diameter = longest_diameter(Patch((0, 0, 0), inside), grid, "axial")
    assert diameter is not None and diameter.slice == 1
    pixel = max(np.linalg.norm(plan.affine[:3, axis]) for axis in (0, 1))
    assert diameter.length_mm == pytest.approx(40, abs=pixel)
    assert diameter.across_mm == pytest.approx(22, abs=pixel)
    ends = grid.to_world(diameter.ends)
    direction = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    assert abs(direction @ turned[0]) > np.cos(np.radians(6))


def test_rows_and_single_voxels_are_as_long_as_they_are() -> None:
    grid = grid_of((9, 9, 9), (0.7, 0.9, 3.0))
    row = Patch((1, 2, 3), np.ones((5, 1, 1), bool))
    diameter = {plane: longest_diameter(row, grid, plane) for plane in PLANES}
    assert diameter["axial"].length_mm == pytest.approx(5 * 0.7)
    assert diameter["axial"].across_mm == pytest.approx(0.9)
    assert diameter["axial"].ends == ((0.5, 2, 3), (5.5, 2, 3)) or diameter["axial"].ends == (
        (5.5, 2, 3),
        (0.5, 2, 3),
    )
    assert diameter["sagittal"].length_mm == pytest.approx(3.0)  # one voxel: its longer side
    assert longest_diameter(Patch((0, 0, 0), np.zeros((3, 3, 3), bool)), grid, "axial") is None


def test_the_chord_across_is_the_longest_of_all_chords() -> None:
    grid, rng = GRIDS["tilted"], np.random.default_rng(5)
    for _ in range(20):
        inside = rng.random((7, 6, 1)) > 0.6
        diameter = longest_diameter(Patch((0, 0, 0), inside), grid, "axial")
        assert diameter is not None
        flat = np.insert(sides(inside[:, :, 0]), 2, 0, axis=1)
        points, (first, last) = grid.to_world(flat), grid.to_world(diameter.ends)
        along = (last - first) / np.linalg.norm(last - first)
        rest = points - first - np.outer((points - first) @ along, along)
        normal = rest[np.linalg.norm(rest, axis=1).argmax()]
        normal /= np.linalg.norm(normal)
        uv = np.stack([(points - first) @ along, (points - first) @ normal], axis=1)
        # every chord of the hull lies between two of the segments that join the points
        best = 0.0
        for at in np.unique(uv[:, 0].round(9)):
            heights = []
            for a in uv:
                for b in uv:
                    if a[0] - 1e-7 <= at <= b[0] + 1e-7:
                        share = (at - a[0]) / (b[0] - a[0]) if b[0] - a[0] > 1e-6 else 0.0
                        heights.append(a[1] + share * (b[1] - a[1]))
            best = max(best, max(heights) - min(heights))
        assert diameter.across_mm == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("name", GRIDS)
def test_what_a_ball_measures(name: str) -> None:
    grid, rng = GRIDS[name], np.random.default_rng(1)
    array = rng.normal(40, 12, grid.shape).astype(np.float32)
    middle = grid.to_world((14, 12, 10))
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    ball = np.linalg.norm(grid.to_world(ijk) - middle, axis=-1) < 7.5
    corner = np.argwhere(ball).min(axis=0)
    i, j, k = corner.tolist()
    measurement = measure(Patch((i, j, k), ball[i:, j:, k:]), array, grid)
    assert measurement.voxels == int(ball.sum())
    assert measurement.volume_ml == pytest.approx(4 / 3 * np.pi * 0.75**3, rel=0.06)
    inside = array[ball].astype(float)
    assert (measurement.mean, measurement.sd) == pytest.approx((inside.mean(), inside.std()))
    assert (measurement.low, measurement.high) == (inside.min(), inside.max())
    assert measurement.first == tuple(corner) and measurement.last == tuple(np.argwhere(ball).max(axis=0))
    sizes = (np.array(measurement.last) - measurement.first + 1) * grid.spacing
    assert measurement.box_mm == pytest.approx(tuple(sizes[list(grid.ras.axes)]))
    for areas in measurement.areas:
        axis = grid.ras.axes[PLANES[areas.plane]]
        normal = np.cross(*(grid.affine[:3, a] for a in range(3) if a != axis))
        distance = abs(normal @ grid.affine[:3, axis]) / np.linalg.norm(normal)
        assert sum(areas.mm2) * distance / 1000 == pytest.approx(measurement.volume_ml)
        assert (
            areas.first == measurement.first[axis]
            and len(areas.mm2) == measurement.last[axis] - measurement.first[axis] + 1
        )
        assert max(areas.mm2) == pytest.approx(np.pi * 7.5**2, rel=0.12)


def test_nothing_measures_nothing() -> None:
    grid = GRIDS["plain"]
    measurement = measure(Patch((0, 0, 0), np.zeros((2, 2, 2), bool)), np.ones(grid.shape), grid)
    assert (measurement.voxels, measurement.diameters, measurement.areas) == (0, (), ())
    (row,) = csv.DictReader(io.StringIO(object_table([(1, "none", measurement)])))
    assert row["voxels"] == "0" and row["axial_diameter_mm"] == row["mean"] == ""


def test_tables_read_back_and_hold_no_formulas() -> None:
    grid = GRIDS["anisotropic"]
    array = np.full(grid.shape, -1000.25)
    measurement = measure(Patch((1, 2, 3), np.ones((4, 3, 2), bool)), array, grid)
    rows = [(3, "=HYPERLINK(1)", measurement), (5, 'a "b", c', measurement)]
    table = list(csv.DictReader(io.StringIO(object_table(rows, unit="HU"))))
    assert tuple(table[0]) == COLUMNS
    assert [row["name"] for row in table] == ["'=HYPERLINK(1)", 'a "b", c']
    assert float(table[0]["mean"]) == -1000.25 and table[0]["unit"] == "HU"
    assert float(table[0]["volume_ml"]) == pytest.approx(24 * 0.7 * 0.9 * 3 / 1000)
    assert [table[0][f"last_{axis}"] for axis in "ijk"] == ["4", "4", "4"]
    assert float(table[0]["box_si_mm"]) == 6
    areas = list(csv.DictReader(io.StringIO(area_table(rows))))
    assert tuple(areas[0]) == AREA_COLUMNS and len(areas) == 2 * (2 + 3 + 4)
    assert float(areas[0]["area_mm2"]) == pytest.approx(12 * 0.63)
