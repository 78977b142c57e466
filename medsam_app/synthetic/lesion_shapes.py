"""Shapes of synthetic anatomy, as signed fields on their bounding boxes.

A window spans [-1, 1] along each axis, regardless of its number of voxels. A field is negative inside the
shape. Distances from planes and centres are sums of one term per axis, so most of the work is done on lines
and planes and little on the complete box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_app.synthetic.sampler import Box, Draws

Vector = NDArray[np.float64]


@dataclass
class Shape:
    """Signed field on a box of a window, negative inside the shape; the shape lies within the box.

    Attributes:
        box: the part of the window.
        field: (a, b, c) values on the box.
        depth: length that one unit of the field spans where the shape is thinnest, in units of the window.
    """

    box: Box
    field: Tensor
    depth: float


def box_around(centre: Vector, reach: Vector | float, n: int) -> Box:
    """Return the voxels within `reach` of a centre along each axis, at least one."""
    low = np.clip(np.floor((centre - reach + 1) / 2 * (n - 1)), 0, n - 1).astype(int).tolist()
    high = np.clip(np.ceil((centre + reach + 1) / 2 * (n - 1)), low, n - 1).astype(int).tolist()
    x, y, z = (slice(start, end + 1) for start, end in zip(low, high, strict=True))
    return (x, y, z)


def lines(box: Box, n: int, centre: Vector, device: torch.device) -> list[Tensor]:
    """Return the offsets of a box's voxels from a centre: (a, 1, 1), (1, b, 1) and (1, 1, c)."""
    places = _places(n, device)
    x, y, z = (places[part] - float(middle) for part, middle in zip(box, centre, strict=True))
    return [x[:, None, None], y[:, None], z]


@lru_cache(maxsize=16)
def _places(n: int, device: torch.device) -> Tensor:
    """Return the (n,) voxel centres of a window along an axis."""
    return torch.linspace(-1, 1, n, device=device)


def _plane(offsets: list[Tensor], normal: Vector) -> Tensor:
    """Return the (a, b, c) scalar product of offsets and a vector."""
    x, y, z = (line * float(value) for line, value in zip(offsets, normal, strict=True))
    return (x + y) + z


def _squared(offsets: list[Tensor], form: NDArray[np.float64]) -> Tensor:
    """Return the (a, b, c) quadratic form (3, 3) of offsets."""
    x, y, z = offsets
    a = form
    across = a[0, 0] * x * x + a[1, 1] * y * y + 2 * a[0, 1] * x * y
    return (2 * (a[0, 2] * x + a[1, 2] * y) + a[2, 2] * z) * z + across


def blob(
    draws: Draws, n: int, centre: Vector, size: float, *, bumps: float = 0.35, stretch: float = 0.35
) -> Shape:
    """Return an ellipsoid with a bumpy surface.

    Args:
        draws: random choices.
        n: voxels per side of the window.
        centre: (3,) position in the window.
        size: mean radius.
        bumps: largest height of the bumps, as a fraction of the radius.
        stretch: standard deviation of the logarithm of the three radii.
    """
    radii = size * np.exp(stretch * draws.normals(3))
    axes = draws.rotation()
    height = draws.uniform(0, bumps)
    reach = (1 + 3 * height) * np.linalg.norm(axes * radii, axis=1)
    box = box_around(centre, reach, n)
    form = (axes / radii**2) @ axes.T
    field = _squared(lines(box, n, centre, draws.device), form).clamp_min_(0).sqrt_() - 1
    return Shape(box, field + height * draws.smooth(n, draws.integer(2, 8), box), float(radii.min()))


def tube(draws: Draws, n: int, centre: Vector, size: float) -> Shape:
    """Return a branching vessel: a chain of capsules in each direction, and up to three branches."""
    thinnest = 1.3 * 2 / n
    radius = max(thinnest, size * draws.uniform(0.1, 0.35))
    direction, step = draws.direction(), 0.6 * size
    branches = [(centre, direction, radius), (centre, -direction, radius)]
    for _ in range(draws.integer(0, 3)):
        branches.append((centre + draws.uniform(-1, 1) * direction, draws.direction(), 0.7 * radius))
    capsules = []
    for start, way, radius in branches:
        for _ in range(5):
            radius = max(thinnest, radius)
            capsules.append((start, way, radius))
            start = start + step * way
            way = way + 0.4 * draws.normals(3)
            way = way / np.linalg.norm(way)
            radius *= draws.uniform(0.8, 1.05)
    ends = np.concatenate([[start, start + step * way] for start, way, _ in capsules])
    # Noise moves the surface by at most half a radius.
    reach = 1.6 * max(radius for *_, radius in capsules) + 1e-6
    low, high = np.clip(ends.min(axis=0) - reach, -1, 1), np.clip(ends.max(axis=0) + reach, -1, 1)
    box = box_around((low + high) / 2, (high - low) / 2, n)
    field = torch.full([part.stop - part.start for part in box], 9.0, device=draws.device)
    corner = [part.start for part in box]
    for start, way, radius in capsules:
        middle, extent = start + step / 2 * way, np.abs(way) * step / 2 + 1.6 * radius
        if (np.abs(middle) - extent > 1).any():
            continue  # outside the window
        near = box_around(middle, extent, n)
        offsets = lines(near, n, start, draws.device)
        forward = _plane(offsets, way)
        along = forward.clamp(0, step)
        squared = (_squared(offsets, np.eye(3)) - along * (2 * forward - along)) / radius**2
        part = field[tuple(slice(a.start - c, a.stop - c) for a, c in zip(near, corner, strict=True))]
        torch.minimum(part, squared, out=part)
    field = field.clamp_min_(0).sqrt_() - 1
    return Shape(box, field + draws.uniform(0, 0.15) * draws.smooth(n, 6, box), thinnest)


def sheet(draws: Draws, n: int, centre: Vector, size: float) -> Shape:
    """Return a thin curved sheet."""
    normal = draws.direction()
    thickness = max(2.5 / n, size * draws.uniform(0.08, 0.25))
    box = box_around(centre, 1.5 * size, n)
    offsets = lines(box, n, centre, draws.device)
    across = _plane(offsets, normal)
    bent = (across + draws.uniform(0, 0.3) * draws.smooth(n, 2, box)).abs() / thickness - 1
    within = (_squared(offsets, np.eye(3)) - across**2).clamp_min(0).sqrt() / (1.5 * size) - 1
    return Shape(box, torch.maximum(bent, within), thickness)


def cloud(draws: Draws, n: int, centre: Vector, size: float) -> Shape:
    """Return thresholded noise of three scales within a sphere around the centre."""
    box = box_around(centre, 1.5 * size, n)
    field = _squared(lines(box, n, centre, draws.device), np.eye(3)).sqrt() / (1.5 * size)
    noise = tissue(draws, n, box)
    middle = tuple(
        part.start - outer.start for part, outer in zip(box_around(centre, 0, n), box, strict=True)
    )
    threshold = (noise[middle] - 0.1).clamp_max(draws.uniform(-0.3, 0.2))  # the cloud is never empty
    return Shape(box, torch.maximum(field - 1, 0.5 * field + threshold - noise), size)


def tissue(draws: Draws, n: int, box: Box) -> Tensor:
    """Return noise of several scales, weaker at finer scales."""
    coarse = draws.integer(1, 3)
    return sum(
        (draws.smooth(n, coarse * 2**k, box) / 2**k for k in range(1, 3)), draws.smooth(n, coarse, box)
    )


def shell(draws: Draws, n: int, solid: Shape) -> Shape:
    """Return the wall of a solid, thick enough to be closed on the window's voxels."""
    thickness = max(2.2 * 2 / n, draws.uniform(0.1, 0.4) * solid.depth) / solid.depth
    return Shape(solid.box, torch.maximum(solid.field, -solid.field - thickness), solid.depth)


def wide_tube(draws: Draws, n: int, centre: Vector, size: float) -> Shape:
    """Return a thick bent capsule that can contain a wall around a lumen."""
    way, radius = draws.direction(), max(5 * 2 / n, 0.5 * size)
    box = box_around(centre, np.abs(way) * size + 2 * radius, n)
    offsets = lines(box, n, centre, draws.device)
    along = _plane(offsets, way).clamp(-size, size)
    forward = _plane(offsets, way)
    squared = _squared(offsets, np.eye(3)) - along * (2 * forward - along)
    field = squared.clamp_min(0).sqrt() / radius - 1
    return Shape(box, field + draws.uniform(0, 0.2) * draws.smooth(n, 2, box), radius)


def hollow(draws: Draws, n: int, centre: Vector, size: float) -> Shape:
    """Return a thin closed wall around a blob or a tube."""
    size = max(size, 6 * 2 / n)
    if draws.chance(0.5):
        return shell(draws, n, blob(draws, n, centre, size, bumps=0.15, stretch=0.2))
    return shell(draws, n, wide_tube(draws, n, centre, size))


#: Shapes of single objects by name.
SHAPES: dict[str, Callable[[Draws, int, Vector, float], Shape]] = {
    "blob": blob,
    "tube": tube,
    "sheet": sheet,
    "cloud": cloud,
    "hollow": hollow,
}
