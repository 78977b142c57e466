"""Distances between surfaces of masks in mm, computed by MONAI.

The surface of a mask consists of its voxels that share a face with a voxel outside it. Voxels beyond the
volume count as outside.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medsam_app.grid.patch import box_slices, mask_bounds

#: Percentile of the distances that is used for HD95.
PERCENTILE = 95


class Distances(NamedTuple):
    """Surface scores of a mask against the truth.

    Attributes:
        surface_dice: fraction of both surfaces that lies within the tolerance of the other surface.
        hd95: 95th percentile Hausdorff distance in mm: the larger of the 95th percentiles of the distances
            from each surface to the other. None if exactly one mask is empty, since it is then undefined.
    """

    surface_dice: float
    hd95: float | None


def usual_tolerance(spacing: ArrayLike) -> float:
    """Return the largest side of a voxel in mm: a shift by one voxel in any direction is tolerated."""
    return float(np.max(spacing))


def surface_distances(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], *, spacing: ArrayLike, tolerance: float | None = None
) -> Distances:
    """Return the surface scores of two masks: (1, 0) if both are empty, (0, None) if only one is.

    Args:
        mask, truth: (i, j, k) booleans on the same grid.
        spacing: mm along (i, j, k).
        tolerance: distance in mm up to which surfaces count as equal; None for `usual_tolerance`.
    """
    # This import takes seconds, which would delay the start of the server.
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    bounds = mask_bounds(mask | truth)
    if bounds is None:
        return Distances(1.0, 0.0)
    if not mask.any() or not truth.any():
        return Distances(0.0, None)
    # The crop holds both surfaces. Padding makes voxels at the faces of the crop surface voxels.
    box = box_slices(*bounds)
    predicted, reference = (torch.from_numpy(np.pad(array[box], 1))[None, None] for array in (mask, truth))
    mm = np.asarray(spacing, dtype=np.float64).tolist()
    within = usual_tolerance(spacing) if tolerance is None else tolerance
    options = {"include_background": True, "spacing": mm}
    with warnings.catch_warnings():  # MONAI warns about its own future changes
        warnings.simplefilter("ignore", FutureWarning)
        surface_dice = compute_surface_dice(predicted, reference, [within], **options)
        hd95 = compute_hausdorff_distance(predicted, reference, percentile=PERCENTILE, **options)
    return Distances(float(surface_dice), float(hd95))
