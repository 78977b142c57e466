"""From a slice's intensities to the square picture that a 2D model's encoder was trained with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam_app.models.sam_package import sam_package

#: Mean and standard deviation of red, green and blue in 0..255, of the pictures SAM was trained with.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

#: Height and width of a pixel, in mm or in anything else: only their ratio counts.
Pixel = tuple[float, float]
SQUARE: Pixel = (1.0, 1.0)

#: Makes of a slice (H, W) in [0, 1], the square's side S and the slice's pixel the (1, 3, S, S) picture, and
#: the rows and columns that the slice takes of it.
SliceInput = Callable[[NDArray[np.float32], int, Pixel], tuple[Tensor, tuple[int, int]]]


def shown_in_window(image: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    """Raw intensities as shares of a window (black, white), in [0, 1]."""
    low, high = window
    return np.clip((image.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-30)), 0, 1)


def longest_side_fits(
    shown: NDArray[np.float32], side: int, pixel: Pixel = SQUARE
) -> tuple[Tensor, tuple[int, int]]:
    """Fit the longest side into the square, as SAM does; the rest is zero after normalisation.

    A slice of oblong pixels gets its physical proportions by one resizing.
    """
    package = sam_package().utils.transforms
    # To a thousandth, since spacings that are meant to be equal differ in their last digits.
    height, width = (n * round(mm / min(pixel), 3) for n, mm in zip(shown.shape, pixel, strict=True))
    rows, columns = package.ResizeLongestSide.get_preprocess_shape(height, width, side)
    fitted = max(rows, 1), max(columns, 1)
    # The package's own resizing of whole grey values, whose rounding is part of what SAM was trained with.
    grey = np.array(package.resize(package.to_pil_image(_grey(shown)), fitted))
    return padded(_normalised(torch.from_numpy(grey)[None, None].float()), side), fitted


def stretched(shown: NDArray[np.float32], side: int, pixel: Pixel = SQUARE) -> tuple[Tensor, tuple[int, int]]:
    """MedSAM's: stretched to the square, whatever its pixels, and spread over [0, 1]."""
    value = F.interpolate(
        torch.from_numpy(shown)[None, None], (side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    value = (value - value.min()) / (value.max() - value.min()).clamp_min(1e-8)
    return value.repeat(1, 3, 1, 1), (side, side)


def stretched_nearest(
    shown: NDArray[np.float32], side: int, pixel: Pixel = SQUARE
) -> tuple[Tensor, tuple[int, int]]:
    """SAM-Med2D's: normalised as SAM's, every pixel of the square the nearest one of the slice."""
    value = torch.from_numpy(_grey(shown))[None, None].float()
    return _normalised(F.interpolate(value, (side, side), mode="nearest")), (side, side)


def padded(x: Tensor, side: int, value: float = 0.0) -> Tensor:
    """(..., h, w) filled up to a square, below and on the right."""
    return F.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]), value=value)


def _grey(shown: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(shown * 255).astype(np.uint8)


def _normalised(grey: Tensor) -> Tensor:
    """(1, 3, h, w) from (1, 1, h, w) in 0..255."""
    return (grey - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
