"""Time of the surface and the measurements of an object: `python benchmarks/surface.py`."""

from __future__ import annotations

import time

import numpy as np

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.measure.measurements import measure
from medsam_app.measure.surface_mesh import surface_of
from medsam_app.synthetic.torso import torso_phantom


def ellipsoid() -> tuple[np.ndarray, Grid]:
    """Return an ellipsoid of 1.2 million voxels in a CT of 512 x 512 x 300."""
    i, j, k = np.ogrid[:160, :160, :110]
    mask = ((i - 80) / 75) ** 2 + ((j - 80) / 75) ** 2 + ((k - 55) / 52) ** 2 < 1
    return mask, Grid((512, 512, 300), np.diag([0.7, 0.7, 1.0, 1.0]))


def report(name: str, mask: np.ndarray, array: np.ndarray, grid: Grid) -> None:
    patch, began = Patch((0, 0, 0), mask), time.perf_counter()
    surface = surface_of(patch, grid)
    drawn = time.perf_counter() - began
    measure(patch, array, grid)
    measured = time.perf_counter() - began - drawn
    voxels = int(mask.sum()) * grid.voxel_volume_ml
    print(
        f"{name:16} {int(mask.sum()):9,} voxels  {len(surface.triangles):8,} triangles  {drawn:5.2f} s  "
        f"measured in {measured:5.2f} s  {surface.volume_ml:7.1f} of {voxels:7.1f} ml"
    )


def main() -> None:
    volume, labels, names = torso_phantom()
    for value, name in names.items():
        report(name, labels == value, volume.array, volume.grid)
    mask, grid = ellipsoid()
    report("ellipsoid", mask, np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)


if __name__ == "__main__":
    main()
