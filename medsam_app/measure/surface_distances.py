"""Distances between surfaces of masks in mm, computed by MONAI.

A surface is the voxels of a mask that touch one outside it by a face; beyond the volume is outside.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medsam_app.grid.patch import box_slices, mask_bounds

#: Share of the distances, in per cent, that HD95 is not below.
PERCENTILE = 95


class Distances(NamedTuple):
    """Of a mask and the truth.

    Attributes:
        surface_dice: share of both surfaces that lies within the tolerance of the other one.
        hd95: mm; the larger of the 95th percentiles of the distances from either surface to the other.
            None where one of the two is empty, since no distance leads from nothing.
    """

    surface_dice: float
    hd95: float | None


def usual_tolerance(spacing: ArrayLike) -> float:
    """The largest side of a voxel in mm: a surface that is one voxel off in any direction still counts."""
    return float(np.max(spacing))


def surface_distances(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], *, spacing: ArrayLike, tolerance: float | None = None
) -> Distances:
    """Distances between two surfaces.

    Where both masks are empty they agree: (1, 0). Where one is: (0, None).

    Args:
        mask, truth: (i, j, k) on one grid.
        spacing: mm along (i, j, k).
        tolerance: mm by which a surface may be off and still count as right; None for `usual_tolerance`.
    """
    # Seconds, which a server would need before its first page.
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    bounds = mask_bounds(mask | truth)
    if bounds is None:
        return Distances(1.0, 0.0)
    if not mask.any() or not truth.any():
        return Distances(0.0, None)
    # All of both surfaces is in here, and a margin of nothing around them makes their outer faces surface.
    box = box_slices(*bounds)
    found, wanted = (torch.from_numpy(np.pad(each[box], 1))[None, None] for each in (mask, truth))
    mm = np.asarray(spacing, dtype=np.float64).tolist()
    within = usual_tolerance(spacing) if tolerance is None else tolerance
    shared = {"include_background": True, "spacing": mm}
    with warnings.catch_warnings():  # of MONAI about itself
        warnings.simplefilter("ignore", FutureWarning)
        surface = compute_surface_dice(found, wanted, [within], **shared)
        far = compute_hausdorff_distance(found, wanted, percentile=PERCENTILE, **shared)
    return Distances(float(surface), float(far))
