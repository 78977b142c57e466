"""Pseudo-objects: regions outlined by the edges of a real image.

Training only on painted shapes or on the few labelled organs teaches only those shapes. Supervoxels of real
images add outlines of any structure, from a vessel to an organ, without labels. They come from a watershed of
the gradient's magnitude, whose level determines the size of the regions. Similar neighbours are merged, so
that regions are not always convex.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam_app.synthetic.sampler import Draws

#: Smallest and largest fraction of the window that a region may fill.
LEAST, MOST = 0.001, 0.6
#: Largest fraction of a region's outline that may lie at the border of the window or the volume.
MOST_CUT = 0.35
#: Seeds tried per image.
SEEDS = 6


def pseudo_object(draws: Draws, image: Tensor, valid: Tensor) -> Tensor | None:
    """Return a random region of an image, or None if no seed gave one.

    Args:
        draws: source of randomness.
        image: (n, n, n) intensities, any unit.
        valid: (n, n, n) whether the voxel lies in the volume.

    Returns:
        (n, n, n) booleans.
    """
    values = image.numpy().astype(np.float32)
    low, high = np.quantile(values[valid.numpy()], (0.01, 0.99)) if bool(valid.any()) else (0.0, 0.0)
    if high - low < 1e-6:
        return None
    values = np.clip((values - low) / (high - low), 0, 1)
    regions = _watershed(values, draws.log_uniform(0.6, 2.0), draws.log_uniform(0.03, 0.6))
    for _ in range(SEEDS):  # cheap, compared with the watershed
        region = _region(draws, values, regions, valid.numpy())
        if region is not None:
            return torch.from_numpy(region)
    return None


def _watershed(values: NDArray[np.float32], sigma: float, depth: float) -> NDArray[np.int64]:
    """Return the basins (n, n, n) of an image's gradient, numbered from 1.

    Basins grow from the minima of the gradient's magnitude along the paths with the smallest largest step.
    SimpleITK's watershed of the magnitude takes several times as long.

    Args:
        values: (n, n, n) intensities from 0 to 1.
        sigma: standard deviation of the smoothing in voxels.
        depth: depth below which minima are filled, as a fraction of the magnitude's 90th percentile.
    """
    edges = ndimage.gaussian_gradient_magnitude(values, sigma)
    filled = sitk.HMinima(sitk.GetImageFromArray(edges), depth * float(np.quantile(edges, 0.9)))
    minima = sitk.RegionalMinima(filled, backgroundValue=0.0, foregroundValue=1.0)
    markers = sitk.GetArrayFromImage(sitk.ConnectedComponent(minima)).astype(np.int32)
    # The cost of a step is the difference of two neighbours. Less smoothing than for the minima keeps the
    # edges in place.
    heights = (65535 * np.clip(ndimage.gaussian_filter(values, 0.5 * sigma), 0, 1)).astype(np.uint16)
    return ndimage.watershed_ift(heights, markers).astype(np.int64)


def _region(
    draws: Draws, values: NDArray[np.float32], regions: NDArray[np.int64], valid: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """Return the region around a random seed, or None if it is no plausible object."""
    # Near the centre, where users place the object they look at.
    seed = (len(values) * (0.2 + 0.6 * draws.uniforms(3))).astype(int)
    chosen = {int(regions[tuple(seed)])}
    if draws.chance(0.6):
        chosen |= _similar(regions, values, chosen, draws.log_uniform(0.02, 0.15))
    region = np.isin(regions, list(chosen))
    if draws.chance(0.7):  # smooth like a hand-drawn outline
        region = ndimage.uniform_filter(region.astype(np.float32), 3) > 0.5  # median of booleans
        region = ndimage.binary_fill_holes(region)
    parts, _ = ndimage.label(region)
    if parts[tuple(seed)]:
        region = parts == parts[tuple(seed)]
    region &= valid
    if not LEAST <= float(region.mean()) <= MOST or _cut(region, valid) > MOST_CUT:
        return None
    return region


def _cut(region: NDArray[np.bool_], valid: NDArray[np.bool_]) -> float:
    """Return the share of a region's outline at the border of the window or the volume."""
    outline = region & ~ndimage.binary_erosion(region)
    return float((outline & ~ndimage.binary_erosion(valid)).sum() / max(1, outline.sum()))


def _similar(
    regions: NDArray[np.int64], values: NDArray[np.float32], chosen: set[int], tolerance: float
) -> set[int]:
    """Return the regions connected to the chosen ones through neighbours of similar mean intensity."""
    count = int(regions.max()) + 1
    voxels = np.bincount(regions.ravel(), minlength=count)
    means = np.bincount(regions.ravel(), weights=values.ravel(), minlength=count) / np.maximum(voxels, 1)
    touching = []
    for axis, n in enumerate(regions.shape):
        before, after = regions.take(range(n - 1), axis), regions.take(range(1, n), axis)
        differ = before != after
        touching.append(before[differ] * count + after[differ])
    first, second = np.divmod(np.unique(np.concatenate(touching)), count)
    target = float(np.mean([means[c] for c in chosen]))
    similar = np.abs(means - target) < tolerance
    both_similar = similar[first] & similar[second]
    first, second = first[both_similar], second[both_similar]
    reached = np.zeros(count, dtype=bool)
    reached[list(chosen)] = True
    while True:
        grown = reached.copy()
        touched = reached[first] | reached[second]
        grown[first[touched]] = grown[second[touched]] = True
        if (grown == reached).all():
            return set(np.flatnonzero(reached).tolist())
        reached = grown
