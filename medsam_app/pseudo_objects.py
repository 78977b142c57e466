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

from medsam_app.draws import Draws

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
    edges = ndimage.gaussian_gradient_magnitude(values, draws.log_uniform(0.6, 2.0))
    level = draws.log_uniform(0.03, 0.6) * float(np.quantile(edges, 0.9))
    flooded = sitk.MorphologicalWatershed(sitk.GetImageFromArray(edges), level=level, markWatershedLine=False)
    regions = sitk.GetArrayFromImage(flooded).astype(np.int64)
    for _ in range(PLACES):  # the watershed is what takes long
        region = _region(draws, values, regions, valid.numpy())
        if region is not None:
            return torch.from_numpy(region)
    return None


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
        region = ndimage.median_filter(region.astype(np.uint8), 3) > 0
        region = ndimage.binary_fill_holes(region)
    parts, _ = ndimage.label(region)
    if parts[tuple(seed)]:
        region = parts == parts[tuple(seed)]
    region &= valid
    if not LEAST <= float(region.mean()) <= MOST or _cut(region, valid) > MOST_CUT:
        return None
    return region


def _cut(region: NDArray[np.bool_], valid: NDArray[np.bool_]) -> float:
    """Share of a region's outline that lies at the end of the window or of the volume."""
    outline = region & ~ndimage.binary_erosion(region)
    return float((outline & ~ndimage.binary_erosion(valid)).sum() / max(1, outline.sum()))


def _alike(
    regions: NDArray[np.int64], values: NDArray[np.float32], chosen: set[int], tolerance: float
) -> set[int]:
    """Regions that can be reached from the chosen ones through neighbours of like mean intensity."""
    count = int(regions.max()) + 1
    voxels = np.bincount(regions.ravel(), minlength=count)
    means = np.bincount(regions.ravel(), weights=values.ravel(), minlength=count) / np.maximum(voxels, 1)
    pairs = np.concatenate(
        [
            np.stack([regions.take(range(n - 1), axis).ravel(), regions.take(range(1, n), axis).ravel()], 1)
            for axis, n in enumerate(regions.shape)
        ]
    )
    target = float(np.mean([means[c] for c in chosen]))
    fits = np.abs(means - target) < tolerance
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & fits[pairs].all(axis=1)]
    pairs = np.stack(np.divmod(np.unique(pairs[:, 0] * count + pairs[:, 1]), count), axis=1)
    reached = np.zeros(count, dtype=bool)
    reached[list(chosen)] = True
    while True:
        grown = reached.copy()
        grown[pairs[reached[pairs].any(axis=1)].ravel()] = True
        if (grown == reached).all():
            return set(np.flatnonzero(reached).tolist())
        reached = grown
