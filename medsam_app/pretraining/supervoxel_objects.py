"""Objects without labels: regions that the edges of a real image outline.

A network that sees real texture with no more than painted shapes learns shapes; one that sees only the few
organs somebody labelled learns these. Supervoxels of any image give real outlines of anything, from a
vessel to an organ, at no cost. They come from a watershed of the gradient's magnitude, whose level sets
how coarse the regions are; neighbours that look alike are joined, so that a region is not always convex.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam_app.synthetic.sampler import Draws

#: Share of the window that a region may fill.
LEAST, MOST = 0.001, 0.6
#: A region whose outline is made by more than this by the end of the window or of the volume has none.
MOST_CUT = 0.35
#: Places at which a region is looked for in one image.
PLACES = 6


def pseudo_object(draws: Draws, image: Tensor, valid: Tensor) -> Tensor | None:
    """A random region of an image, or None where the draw found none.

    Args:
        image: (n, n, n) intensities, any unit.
        valid: (n, n, n) booleans, inside the volume.

    Returns:
        (n, n, n) booleans.
    """
    values = image.numpy().astype(np.float32)
    low, high = np.quantile(values[valid.numpy()], (0.01, 0.99)) if bool(valid.any()) else (0.0, 0.0)
    if high - low < 1e-6:
        return None
    values = np.clip((values - low) / (high - low), 0, 1)
    regions = _watershed(values, draws.log_uniform(0.6, 2.0), draws.log_uniform(0.03, 0.6))
    for _ in range(PLACES):  # the watershed is what takes long
        region = _region(draws, values, regions, valid.numpy())
        if region is not None:
            return torch.from_numpy(region)
    return None


def _watershed(values: NDArray[np.float32], sigma: float, depth: float) -> NDArray[np.int64]:
    """Basins (n, n, n) of an image's gradient, numbered from 1.

    They grow from the minima of the gradient's magnitude, along paths whose largest step is least.
    SimpleITK's own watershed of the magnitude takes several times as long.

    Args:
        values: (n, n, n) intensities from 0 to 1.
        sigma: voxels that the image is smoothed by.
        depth: minima less deep than this are filled first, as a share of the magnitude's 90th percentile.
    """
    edges = ndimage.gaussian_gradient_magnitude(values, sigma)
    filled = sitk.HMinima(sitk.GetImageFromArray(edges), depth * float(np.quantile(edges, 0.9)))
    minima = sitk.RegionalMinima(filled, backgroundValue=0.0, foregroundValue=1.0)
    markers = sitk.GetArrayFromImage(sitk.ConnectedComponent(minima)).astype(np.int32)
    # This watershed takes the difference of two neighbours for the cost of a step; smoothed less than the
    # minima were found with, edges stay where they are.
    heights = (65535 * np.clip(ndimage.gaussian_filter(values, 0.5 * sigma), 0, 1)).astype(np.uint16)
    return ndimage.watershed_ift(heights, markers).astype(np.int64)


def _region(
    draws: Draws, values: NDArray[np.float32], regions: NDArray[np.int64], valid: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """The region of a random place, or None where it is no object."""
    # Around the middle, as a person who looks at something would have it.
    seed = (len(values) * (0.2 + 0.6 * draws.uniforms(3))).astype(int)
    chosen = {int(regions[tuple(seed)])}
    if draws.chance(0.6):
        chosen |= _alike(regions, values, chosen, draws.log_uniform(0.02, 0.15))
    region = np.isin(regions, list(chosen))
    if draws.chance(0.7):  # no person outlines single voxels
        region = ndimage.uniform_filter(region.astype(np.float32), 3) > 0.5  # the median of booleans
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


def _alike(
    regions: NDArray[np.int64], values: NDArray[np.float32], chosen: set[int], tolerance: float
) -> set[int]:
    """Regions that can be reached from the chosen ones through neighbours of like mean intensity."""
    count = int(regions.max()) + 1
    voxels = np.bincount(regions.ravel(), minlength=count)
    means = np.bincount(regions.ravel(), weights=values.ravel(), minlength=count) / np.maximum(voxels, 1)
    touching = []
    for axis, n in enumerate(regions.shape):
        before, after = regions.take(range(n - 1), axis), regions.take(range(1, n), axis)
        differ = before != after
        touching.append(before[differ] * count + after[differ])
    one, other = np.divmod(np.unique(np.concatenate(touching)), count)
    target = float(np.mean([means[c] for c in chosen]))
    fits = np.abs(means - target) < tolerance
    alike = fits[one] & fits[other]
    one, other = one[alike], other[alike]
    reached = np.zeros(count, dtype=bool)
    reached[list(chosen)] = True
    while True:
        grown = reached.copy()
        met = reached[one] | reached[other]
        grown[one[met]] = grown[other[met]] = True
        if (grown == reached).all():
            return set(np.flatnonzero(reached).tolist())
        reached = grown
