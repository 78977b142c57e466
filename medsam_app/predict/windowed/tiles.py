"""Outlines of large objects, redrawn in tiles of finer spacing.

An object larger than a window is first segmented at a coarse spacing. That mask is reliable except near its
outline. Only tiles that the outline crosses are decoded, each with the certain part of the coarse mask as a
prompt, and only voxels near the outline are taken from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index, box_slices, mask_bounds
from medsam_app.grid.roi import Roi, move_values

#: A rough mask is uncertain within this many voxels of its outline.
UNCERTAIN = 4
#: Ratio of the window's spacing to that of its tiles, unless the volume itself is coarser.
FINER = 2.0
#: Least ratio for which tiles are decoded.
LEAST_FINER = 1.25
#: Overlap of neighbouring tiles in voxels, in which they are blended.
OVERLAP = 16


def sure_of(mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return the certain part of a rough mask (X, Y, Z): 1 deep inside, -1 far outside, 0 between."""
    inside = ndimage.binary_erosion(mask, iterations=UNCERTAIN, border_value=1)
    near = ndimage.binary_dilation(mask, iterations=UNCERTAIN)
    return inside.astype(np.int8) - (~near).astype(np.int8)


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A fine window over a complete object, larger than the model's, and the tiles along its outline.

    Attributes:
        roi: the fine window.
        logits: (X, Y, Z) logits of the coarse window, resampled to the fine one.
        sure: (X, Y, Z) int8, see `sure_of`.
        tiles: first voxel of each tile.
        tile_shape: voxels of a tile.
    """

    roi: Roi
    logits: torch.Tensor
    sure: NDArray[np.int8]
    tiles: tuple[Index, ...]
    tile_shape: Index

    def tile(self, corner: Index) -> Roi:
        """Return the window of a tile."""
        origin = np.round(np.asarray(self.roi.origin) + np.asarray(corner) * self.roi.step, 4)
        return Roi(tuple(origin.tolist()), self.roi.spacing, self.tile_shape, self.roi.ras)

    def cut(self, corner: Index) -> tuple[slice, ...]:
        """Return the slices of a tile in the fine window."""
        return box_slices(corner, np.add(corner, self.tile_shape).tolist())

    def redrawn(self, decode: Callable[[Roi, NDArray[np.int8], int], torch.Tensor]) -> torch.Tensor:
        """Return the logits, with those near the outline taken from the tiles.

        Args:
            decode: returns the logits (X, Y, Z) of a tile; called with its window, its certain part and its
                number.
        """
        weight = _fading(self.tile_shape)
        total, weights = torch.zeros_like(self.logits), torch.zeros_like(self.logits)
        for number, corner in enumerate(self.tiles):
            cut = self.cut(corner)
            total[cut] += weight * decode(self.tile(corner), self.sure[cut], number)
            weights[cut] += weight
        replaced = (weights > 0) & torch.from_numpy(self.sure == 0)
        return torch.where(replaced, total / weights.clamp_min(1e-6), self.logits)


def plan_tiles(logits: torch.Tensor, roi: Roi, grid: Grid, *, finest: float, fill: float) -> Mosaic | None:
    """Return the tiles along a mask's outline, or None if the mask is empty or tiles would not be finer.

    Args:
        logits: (X, Y, Z) on the window `roi`.
        roi: the window.
        grid: the volume's grid.
        finest: finest useful spacing in mm.
        fill: logit outside the window.
    """
    bounds = mask_bounds((logits > 0).numpy())
    coarse = max(roi.spacing)
    spacing = max(coarse / FINER, finest)
    if bounds is None or coarse / spacing < LEAST_FINER:
        return None
    low, high = np.asarray(bounds[0]), np.asarray(bounds[1]) - 1
    middle = (low + high) / 2 * roi.step + roi.origin
    # Add a margin for the uncertain voxels and some context beyond them.
    size = np.ceil((high - low + 1) * np.asarray(roi.spacing) / spacing).astype(int) + 2 * (UNCERTAIN + 6)
    extent = np.maximum(size, roi.shape)
    shape = (int(extent[0]), int(extent[1]), int(extent[2]))
    fine = Roi.centred(middle, (spacing,) * 3, shape, grid.ras)
    values = move_values(logits, roi, fine, fill=fill)
    sure = sure_of((values > 0).numpy())
    starts = [_starts(n, side) for n, side in zip(shape, roi.shape, strict=True)]
    corners = [
        (i, j, k)
        for i, j, k in product(*starts)
        if (sure[i : i + roi.shape[0], j : j + roi.shape[1], k : k + roi.shape[2]] == 0).any()
    ]
    return Mosaic(fine, values, sure, tuple(corners), roi.shape)


def _starts(length: int, side: int) -> list[int]:
    """Return the first voxels of the fewest windows of `side` voxels that cover `length` with overlap."""
    count = max(1, -(-(length - OVERLAP) // (side - OVERLAP)))
    return sorted({round(start) for start in np.linspace(0, length - side, count)})


def _fading(shape: Index) -> torch.Tensor:
    """Return (X, Y, Z) weights that decrease towards a tile's faces."""
    lines = []
    for n in shape:
        index = torch.arange(n, dtype=torch.float32)
        lines.append((torch.minimum(index, n - 1 - index) + 1).clamp_max(OVERLAP / 2) / (OVERLAP / 2))
    return lines[0][:, None, None] * lines[1][None, :, None] * lines[2][None, None, :]
