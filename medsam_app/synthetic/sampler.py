"""Random choices and smooth noise for synthetic training windows.

Scalars and small vectors come from a generator on the CPU, so that no choice waits for the device. Arrays of
the size of a window come from a generator on the device and stay there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

#: A part of a window: one slice per axis.
Box = tuple[slice, slice, slice]


def whole(n: int) -> Box:
    """Return the box of a complete window with n voxels per side."""
    return (slice(0, n), slice(0, n), slice(0, n))


class Draws:
    """Random choices of one window.

    Args:
        seed: the same seed gives the same choices, and on the same device the same noise.
        device: device of the noise and of all tensors computed from it.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.choices = np.random.default_rng(seed)
        self.bulk = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """Return a uniformly distributed number in [low, high)."""
        return float(self.choices.uniform(low, high))

    def log_uniform(self, low: float, high: float) -> float:
        """Return a number whose logarithm is uniform in [log(low), log(high))."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """Return a random integer in [low, high]."""
        return int(self.choices.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.uniform(0, 1) < probability

    def normals(self, count: int) -> NDArray[np.float64]:
        """Return (count,) numbers from a standard normal distribution."""
        return self.choices.standard_normal(count)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return (count,) uniformly distributed numbers in [0, 1)."""
        return self.choices.random(count)

    def direction(self) -> NDArray[np.float64]:
        """Return a random unit vector (3,)."""
        vector = self.normals(3)
        return vector / np.linalg.norm(vector)

    def rotation(self) -> NDArray[np.float64]:
        """Return a random orthogonal matrix (3, 3)."""
        return np.linalg.qr(self.choices.standard_normal((3, 3)))[0]

    def noise(self, *shape: int) -> Tensor:
        """Return white noise of unit variance on the device."""
        return torch.randn(shape, generator=self.bulk, device=self.device)

    def smooth(self, n: int, cells: int, box: Box | None = None) -> Tensor:
        """Return noise of unit variance that varies over about n / cells voxels.

        Args:
            n: voxels per side of the window.
            cells: number of waves across the window.
            box: the part of the window to compute; None for all of it.

        Returns:
            (a, b, c) float32 on the box.
        """
        weights = spline_weights(n, cells, self.device)
        rows = [weights[part] for part in box or whole(n)]
        return along_axes(self.noise(*(3 * [weights.shape[1]])), rows)


@lru_cache(maxsize=256)
def spline_weights(n: int, cells: int, device: torch.device) -> Tensor:
    """Return the values of (cells + 3) cubic B-splines at n positions: (n, cells + 3).

    Rows have unit norm, so that interpolated noise keeps its variance.
    """
    distance = np.abs(np.linspace(0, cells, n)[:, None] - np.arange(-1, cells + 2))
    near, far = (4 - 6 * distance**2 + 3 * distance**3) / 6, np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return torch.tensor(weights, dtype=torch.float32, device=device)


@lru_cache(maxsize=256)
def blur_weights(n: int, tenths: int, device: torch.device) -> Tensor:
    """Return the (n, n) matrix of a Gaussian blur with sigma = tenths / 10 voxels and a repeated border."""
    sigma = tenths / 10
    reach = max(1, math.ceil(2.5 * sigma))
    steps = np.arange(-reach, reach + 1)
    line = np.exp(-(steps**2) / (2 * sigma**2))
    weights = np.zeros((n, n))
    for step, value in zip(steps, line / line.sum(), strict=True):
        weights[np.arange(n), np.clip(np.arange(n) + step, 0, n - 1)] += value
    return torch.tensor(weights, dtype=torch.float32, device=device)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Return an image (n, n, n) blurred by a Gaussian of `sigma` voxels, rounded to a tenth of a voxel."""
    tenths = round(10 * sigma)
    if tenths < 2:
        return image
    return along_axes(image, 3 * [blur_weights(image.shape[0], tenths, image.device)])


def thick_slices(image: Tensor, axis: int, count: int, *, smooth: bool) -> Tensor:
    """Return an image (n, n, n) averaged into `count` slices along an axis, and resized to n again.

    Args:
        image: (n, n, n).
        axis: axis across the slices.
        count: number of slices.
        smooth: whether to interpolate between slices instead of repeating them.
    """
    n = image.shape[axis]
    slices = F.interpolate(torch.eye(n, device=image.device)[None], size=count, mode="area")
    mode = "linear" if smooth else "nearest"
    return (F.interpolate(slices, size=n, mode=mode)[0].T @ image.transpose(axis, -2)).transpose(axis, -2)


def along_axes(values: Tensor, matrices: list[Tensor]) -> Tensor:
    """Return an array (i, j, k) with each axis multiplied by a matrix (out, in)."""
    first, second, third = matrices
    values = (first @ values.flatten(1)).view(first.shape[0], *values.shape[1:])
    return second @ values @ third.T
