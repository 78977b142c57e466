"""Uncertainty of a mask: disagreement between variants of its decode.

A variant decodes an encoded window again, with the clicks moved by a voxel or without the mask of the
previous prompts. Each decode gives several candidates. The doubt of a voxel is the probability that the mask
is wrong there, averaged over all candidates. Estimating uncertainty from the spread of such variants follows
Wang et al., arXiv:1807.07356.
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

#: Least doubt of the voxels in a region where a click is proposed.
DOUBTED = 0.25


@dataclass(frozen=True, eq=False)
class Doubt:
    """Disagreement of decode variants with a mask.

    Attributes:
        start: (i, j, k) first voxel of the values.
        values: (a, b, c) in the file's axis order: 0 where all variants agree with the mask, 255 where all
            contradict it; unknown outside.
        worst: voxel (i, j, k) where a click is most informative, or None if no region is in doubt.
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
    """Return the doubt about a mask within a window.

    Args:
        variants: (V, X, Y, Z) logits on the window.
        roi: the window.
        mask: the mask.
        grid: the volume's grid.
        settled: voxels that the user has painted; their doubt is 0.
    """
    low, high = file_box(roi, (0, 0, 0), np.asarray(roi.shape) - 1)
    probability = np.clip(write_box(torch.sigmoid(variants).mean(dim=0), roi, low, high), 0, 1)
    doubt = np.where(mask.within((low, high)), 1 - probability, probability)
    if settled is not None:
        doubt[settled.within((low, high))] = 0
    return Doubt(low, np.round(255 * doubt).astype(np.uint8), _worst(doubt, low, grid))


def _worst(doubt: NDArray[np.float32], low: Index, grid: Grid) -> Index | None:
    """Return the voxel to click next, or None.

    It lies in the region with the largest sum of doubt, where the product of depth and doubt is largest.
    """
    parts, count = ndimage.label(doubt >= DOUBTED, structure=FULL_NEIGHBOURHOOD)
    if not count:
        return None
    label = 1 + int(np.argmax(ndimage.sum_labels(doubt, parts, np.arange(1, count + 1))))
    box = ndimage.find_objects(parts, max_label=label)[label - 1]
    region = parts[box] == label
    weighted_depth = depth(region, grid.spacing) * np.where(region, doubt[box], 0)
    at = np.unravel_index(int(weighted_depth.argmax()), weighted_depth.shape)
    i, j, k = (int(a + s.start + first) for a, s, first in zip(at, box, low, strict=True))
    return i, j, k
