"""Rescaling of intensities to a range that does not depend on the scanner."""

from __future__ import annotations

import numpy as np
from torch import Tensor

#: Percentiles of a volume that are mapped to 0 and 1.
LOW, HIGH = 0.5, 99.5
#: Most voxels sampled for the percentiles.
MOST_SAMPLED = 1_000_000


def rescale_intensities(image: Tensor, valid: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """Rescale the intensities of a whole volume to a range of about 0 to 1.

    Args:
        image: (X, Y, Z) intensities in the file's unit.
        valid: (X, Y, Z) bool, whether the voxel lies inside the volume.
        clip: lowest and highest intensity in the same unit; None for no limits.
    """
    if clip is not None:
        image = image.clamp(*clip)
    inside = image[valid]
    low, high = np.percentile(inside[:: -(-len(inside) // MOST_SAMPLED)].numpy(), [LOW, HIGH])
    return (image - float(low)) / max(float(high - low), 1e-6)
