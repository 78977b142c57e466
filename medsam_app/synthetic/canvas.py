"""Canvas on which smooth shapes of the torso phantom are painted.

A shape is an array of signed distances to its surface in mm, negative inside. Shapes are combined with
minimum (union) and maximum (intersection), and deformed by adding smooth noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Span = tuple[float, float]


@dataclass
class Canvas:
    """Voxels to paint, with their world coordinates; a part of a canvas is a view of it.

    Attributes:
        x, y, z: (I, 1, 1), (1, J, 1), (1, 1, K) mm in RAS+, so that they broadcast to the grid.
        hu: (I, J, K) Hounsfield units.
        labels: (I, J, K) label values.
        inner: (I, J, K) signed distance in mm to the inside of the muscular wall.
        rng: random generator of the noise and the jitter.
    """

    x: Array
    y: Array
    z: Array
    hu: Array
    labels: NDArray[np.uint8]
    inner: Array
    rng: np.random.Generator

    @classmethod
    def blank(cls, shape: tuple[int, int, int], affine: NDArray, rng: np.random.Generator) -> Canvas:
        """Return a canvas of air.

        Args:
            shape: voxels along (i, j, k).
            affine: (4, 4) voxel indices to mm, without rotation.
            rng: random generator of the phantom.
        """
        axes = [(affine[a, a] * np.arange(shape[a]) + affine[a, 3]).astype(np.float32) for a in range(3)]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        hu = np.full(shape, -1000.0, np.float32)
        return cls(x, y, z, hu, np.zeros(shape, np.uint8), np.zeros(shape, np.float32), rng)

    def part(self, x: Span, y: Span, z: Span) -> Canvas:
        """Return the part between two coordinates (mm) along each axis, in which small shapes are cheap."""
        ranges = []
        for axis, (low, high) in zip((self.x, self.y, self.z), (x, y, z), strict=True):
            inside = np.flatnonzero((axis.ravel() >= low) & (axis.ravel() <= high))
            ranges.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 1))
        i, j, k = ranges
        cut = (i, j, k)
        voxels = self.hu[cut], self.labels[cut], self.inner[cut]
        return Canvas(self.x[i], self.y[:, j], self.z[:, :, k], *voxels, self.rng)

    def noise(self, wavelength: float, amplitude: float, *, count: int = 6) -> Array:
        """Return (I, J, K) smooth noise of RMS `amplitude`: `count` plane waves of about `wavelength` mm."""
        waves = self.rng.standard_normal((count, 3))
        length = wavelength * self.rng.uniform(0.75, 1.5, (count, 1))
        waves *= 2 * np.pi / (length * np.linalg.norm(waves, axis=1, keepdims=True))
        phase = self.rng.uniform(0, 2 * np.pi, count)
        # exp(i k.r) is a product over the axes, so a sum of waves is one matrix product.
        plane = np.exp(1j * (waves[:, 0] * self.x + waves[:, 1] * self.y + phase)).astype(np.complex64)
        along = np.exp(1j * waves[:, 2:] * self.z[0]).astype(np.complex64)
        total = np.concatenate([plane.real, -plane.imag], axis=-1) @ np.concatenate([along.real, along.imag])
        return total * np.float32(amplitude * np.sqrt(2.0 / count))

    def jitter(self, amount: float) -> float:
        """Return a small random shift, so that every seed gives a different patient."""
        return float(np.clip(self.rng.normal(0, amount), -2 * amount, 2 * amount))

    def ellipsoid(self, centre: Sequence[float], radii: Sequence[float], *, tilt: float = 0.0) -> Array:
        """Return the first-order distance to an ellipsoid; `tilt` shifts x by mm per mm of z."""
        x = (self.x - centre[0] - tilt * (self.z - centre[2])) / radii[0]
        y, z = (self.y - centre[1]) / radii[1], (self.z - centre[2]) / radii[2]
        value = np.sqrt(x**2 + y**2 + z**2)
        gradient = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        return value * (value - 1) / np.maximum(gradient, 1e-3)

    def tube(self, x: NDArray | float, y: NDArray | float, radii: tuple[float, float]) -> Array:
        """Return the distance to a tube along z whose centre (x, y) may vary with z."""
        u, v = (self.x - x) / radii[0], (self.y - y) / radii[1]
        value = np.sqrt(u**2 + v**2)
        return value * (value - 1) / np.maximum(np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2), 1e-3)

    def paint(self, distance: Array, hu: Array | float, *, label: int = 0, edge: float = 1.6) -> None:
        """Paint where `distance` is negative, blending a border `edge` mm wide with the values below."""
        cover = np.clip(0.5 - distance / edge, 0, 1)
        self.hu += cover * (hu - self.hu)
        np.copyto(self.labels, np.uint8(label), where=cover >= 0.5)


def smooth_union(a: Array, b: Array, radius: float) -> Array:
    """Return the union of two distances, with the crease between them rounded to about `radius` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / radius, 0, 1)
    return b + h * (a - b) - radius * h * (1 - h)
