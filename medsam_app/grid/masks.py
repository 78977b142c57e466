"""Boolean masks on a grid: neighbourhoods, connected parts and agreement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

#: A voxel and its 26 neighbours, as the `structure` of scipy.ndimage's functions.
FULL_NEIGHBOURHOOD = np.ones((3, 3, 3), dtype=bool)
FULL_NEIGHBOURHOOD.setflags(write=False)


def keep_largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest face-connected part of a 2D or 3D mask as a new array."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask.copy()
    return parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks of the same shape; 1 if both are empty."""
    total = int(np.count_nonzero(mask) + np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(mask & truth)) / total if total else 1.0
