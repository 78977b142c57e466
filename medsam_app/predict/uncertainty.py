"""Uncertainty of a mask: disagreement between variants of its decode.

A variant asks the model once more about a window that is encoded already: with the clicks moved by a voxel,
or without the mask of the prompts before; each answer holds several candidates. The more likely a voxel is on
the other side than the mask has it, on average, the more it is in doubt. That the spread of such variants
shows what a network does not know follows Wang et al., arXiv:1807.07356.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.geometry import Grid
from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.patch import Index, Patch
from medsam_app.grid.roi import Roi, file_box, write_box
from medsam_app.prompts.simulated_clicks import depth

#: A place to click holds voxels that are so much in doubt at least.
DOUBTED = 0.25


@dataclass(frozen=True, eq=False)
class Doubt:
    """Disagreement of decode variants with a mask.

    Attributes:
        start: (i, j, k) first voxel of the values.
        values: (a, b, c) in the file's axis order: 0 where all variants are sure of what the mask says, 255
            where all are sure of the opposite; nothing is known outside.
        worst: the voxel (i, j, k) where a click says most, or None where nothing is in doubt.
    """

    start: Index
    values: NDArray[np.uint8]
    worst: Index | None


def doubt_of(
    variants: torch.Tensor,
    roi: Roi,
    mask: Patch,
    grid: Grid,
    *,
    settled: Patch | None = None,
) -> Doubt:
    """The doubt about a mask within a window.

    Args:
        variants: (V, X, Y, Z) logits on the window.
        roi: the window.
        mask: the mask.
        grid: the volume's grid.
        settled: voxels that the user has set by hand; they are not in doubt.
    """
    low, high = file_box(roi, (0, 0, 0), np.asarray(roi.shape) - 1)
    chance = np.clip(write_box(torch.sigmoid(variants).mean(dim=0), roi, low, high), 0, 1)
    doubt = np.where(mask.within((low, high)), 1 - chance, chance)
    if settled is not None:
        doubt[settled.within((low, high))] = 0
    return Doubt(low, np.round(255 * doubt).astype(np.uint8), _worst(doubt, low, grid))


def _worst(doubt: NDArray[np.float32], low: Index, grid: Grid) -> Index | None:
    """The voxel that is deepest, by distance and doubt, in the region with the most doubt in all."""
    parts, count = ndimage.label(doubt >= DOUBTED, structure=FULL_NEIGHBOURHOOD)
    if not count:
        return None
    most = 1 + int(np.argmax(ndimage.sum_labels(doubt, parts, np.arange(1, count + 1))))
    box = ndimage.find_objects(parts, max_label=most)[most - 1]
    region = parts[box] == most
    inside = depth(region, grid.spacing) * np.where(region, doubt[box], 0)
    at = np.unravel_index(int(inside.argmax()), inside.shape)
    i, j, k = (int(a + s.start + first) for a, s, first in zip(at, box, low, strict=True))
    return i, j, k
