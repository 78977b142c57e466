"""Large objects: the outline that one coarse window gave, drawn again in tiles of finer spacing.

An object larger than a window is seen whole at a coarse spacing. Inside and outside are known from that;
what is not is where exactly the outline runs. Only tiles that the outline crosses are examined, each
told what the coarse mask leaves no doubt of, and only voxels near the outline are taken from them.
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

#: Within this many voxels of its outline, a rough mask is not sure.
DOUBT = 4
#: Tiles are this much finer than the window they refine, unless the volume itself is coarser.
FINER = 2.0
#: Less than this is not worth a second look.
LEAST_FINER = 1.25
#: Tiles share this many voxels, in which one fades into the next.
OVERLAP = 16


def sure_of(mask: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return the certain part of a rough mask (X, Y, Z): 1 deep inside, -1 far outside, 0 between."""
    inside = ndimage.binary_erosion(mask, iterations=DOUBT, border_value=1)
    near = ndimage.binary_dilation(mask, iterations=DOUBT)
    return inside.astype(np.int8) - (~near).astype(np.int8)


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A fine window over a whole object, larger than the model's, and the tiles its outline needs.

    Attributes:
        roi: the fine window.
        logits: (X, Y, Z) what the coarse window gave, on the fine one.
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
        """The window of a tile."""
        origin = np.round(np.asarray(self.roi.origin) + np.asarray(corner) * self.roi.step, 4)
        return Roi(tuple(origin.tolist()), self.roi.spacing, self.tile_shape, self.roi.ras)

    def cut(self, corner: Index) -> tuple[slice, ...]:
        """Return the slices of a tile in the fine window."""
        return box_slices(corner, np.add(corner, self.tile_shape).tolist())

    def redrawn(self, look: Callable[[Roi, NDArray[np.int8], int], torch.Tensor]) -> torch.Tensor:
        """The logits, near the outline taken from the tiles.

        Args:
            look: gives the logits (X, Y, Z) of a tile; called with its window, what is sure in it and
                its number.
        """
        weight = _fading(self.tile_shape)
        total, weights = torch.zeros_like(self.logits), torch.zeros_like(self.logits)
        for number, corner in enumerate(self.tiles):
            cut = self.cut(corner)
            total[cut] += weight * look(self.tile(corner), self.sure[cut], number)
            weights[cut] += weight
        seen = (weights > 0) & torch.from_numpy(self.sure == 0)
        return torch.where(seen, total / weights.clamp_min(1e-6), self.logits)


def plan_tiles(logits: torch.Tensor, roi: Roi, grid: Grid, *, finest: float, fill: float) -> Mosaic | None:
    """The tiles that a mask's outline needs, or None where a finer look shows no more.

    Args:
        logits: (X, Y, Z) on the window `roi`.
        roi: the window.
        grid: the volume's grid.
        finest: finest spacing in mm worth looking at.
        fill: logit beyond the window.
    """
    bounds = mask_bounds((logits > 0).numpy())
    coarse = max(roi.spacing)
    spacing = max(coarse / FINER, finest)
    if bounds is None or coarse / spacing < LEAST_FINER:
        return None
    low, high = np.asarray(bounds[0]), np.asarray(bounds[1]) - 1
    middle = (low + high) / 2 * roi.step + roi.origin
    # Room for the doubt and for a tile to see beyond it.
    size = np.ceil((high - low + 1) * np.asarray(roi.spacing) / spacing).astype(int) + 2 * (DOUBT + 6)
    whole = np.maximum(size, roi.shape)
    shape = (int(whole[0]), int(whole[1]), int(whole[2]))
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
    """First voxels of the fewest windows of `side` voxels that cover `length` and overlap enough."""
    count = max(1, -(-(length - OVERLAP) // (side - OVERLAP)))
    return sorted({round(start) for start in np.linspace(0, length - side, count)})


def _fading(shape: Index) -> torch.Tensor:
    """(X, Y, Z) weights that fall towards a tile's faces."""
    lines = []
    for n in shape:
        index = torch.arange(n, dtype=torch.float32)
        lines.append((torch.minimum(index, n - 1 - index) + 1).clamp_max(OVERLAP / 2) / (OVERLAP / 2))
    return lines[0][:, None, None] * lines[1][None, :, None] * lines[2][None, None, :]
