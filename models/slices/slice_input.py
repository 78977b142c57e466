"""Conversion of a slice to the square image that a 2D encoder was trained with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam_app.models.slices.sam_package import sam_package

#: Mean and standard deviation of red, green and blue (0..255) of the images that SAM was trained on.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

#: Height and width of a pixel in any unit: only their ratio has an effect.
Pixel = tuple[float, float]
SQUARE: Pixel = (1.0, 1.0)

#: Function of a slice (H, W) in [0, 1], the side S of the square, and the pixel of the slice. It returns the
#: (1, 3, S, S) image, and the rows and columns that the slice occupies in it.
SliceInput = Callable[[NDArray[np.float32], int, Pixel], tuple[Tensor, tuple[int, int]]]


def apply_window(image: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    """Scale raw intensities from a window (black, white) to [0, 1], with clipping."""
    low, high = window
    return np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-30)), 0, 1)


def fit_longest_side(
    image: NDArray[np.float32], side: int, pixel: Pixel = SQUARE
) -> tuple[Tensor, tuple[int, int]]:
    """Scale the longest side to the side of the square, as SAM does; the rest is zero after normalisation.

    A slice with non-square pixels is resized to its physical proportions in the same step.
    """
    transforms = sam_package().utils.transforms
    fitted = _fitted_size(image.shape, side, pixel)
    # Use the package's resizing of integer grey values: SAM was trained with its rounding.
    grey = np.array(transforms.resize(transforms.to_pil_image(_to_grey(image)), fitted))
    return pad_to_square(_normalise(torch.from_numpy(grey)[None, None].float()), side), fitted


def fit_longest_area(
    image: NDArray[np.float32], side: int, pixel: Pixel = SQUARE
) -> tuple[Tensor, tuple[int, int]]:
    """Scale the longest side to the side of the square and rescale to [0, 1], as LiteMedSAM does.

    A pixel of the result is the mean of the area that it covers. A slice with non-square pixels is resized to
    its physical proportions in the same step. The rest of the square is zero.
    """
    fitted = _fitted_size(image.shape, side, pixel)
    rows, columns = (_shares(n, out) for n, out in zip(image.shape, fitted, strict=True))
    value = rows @ torch.from_numpy(np.ascontiguousarray(image)) @ columns.T
    value = (value - value.min()) / (value.max() - value.min()).clamp_min(1e-8)
    return pad_to_square(value.expand(1, 3, -1, -1), side), fitted


def stretch(image: NDArray[np.float32], side: int, pixel: Pixel = SQUARE) -> tuple[Tensor, tuple[int, int]]:
    """Stretch to the square regardless of pixel shape, and rescale to [0, 1], as MedSAM does."""
    value = F.interpolate(
        torch.from_numpy(image)[None, None], (side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    value = (value - value.min()) / (value.max() - value.min()).clamp_min(1e-8)
    return value.repeat(1, 3, 1, 1), (side, side)


def stretch_nearest(
    image: NDArray[np.float32], side: int, pixel: Pixel = SQUARE
) -> tuple[Tensor, tuple[int, int]]:
    """Resize to the square by nearest neighbours and normalise as SAM does, as in SAM-Med2D."""
    value = torch.from_numpy(_to_grey(image))[None, None].float()
    return _normalise(F.interpolate(value, (side, side), mode="nearest")), (side, side)


def pad_to_square(x: Tensor, side: int, value: float = 0.0) -> Tensor:
    """Pad (..., h, w) to a square, at the bottom and on the right."""
    return F.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]), value=value)


def _fitted_size(shape: tuple[int, ...], side: int, pixel: Pixel) -> tuple[int, int]:
    """Return rows and columns of a slice whose longest side in mm is scaled to `side`."""
    # Round the ratio: spacings that should be equal differ in their last digits.
    height, width = (n * round(mm / min(pixel), 3) for n, mm in zip(shape, pixel, strict=True))
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _shares(size: int, out: int) -> Tensor:
    """Return (out, size) weights: how much of each of `out` equal intervals each pixel of a line covers."""
    edges = torch.arange(out + 1, dtype=torch.float64) * (size / out)
    pixels = torch.arange(size, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (covered.clamp_min(0) * (out / size)).float()


def _to_grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(image * 255).astype(np.uint8)


def _normalise(grey: Tensor) -> Tensor:
    """Normalise (1, 1, h, w) grey values in 0..255 to (1, 3, h, w), as SAM does."""
    return (grey - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
