"""Intensities of a whole volume in a range that does not depend on the scanner."""

from __future__ import annotations

import numpy as np
from torch import Tensor

#: Percentiles of a volume that become 0 and 1.
LOW, HIGH = 0.5, 99.5
#: Most voxels that the percentiles are taken of.
MOST_SAMPLED = 1_000_000


def rescale_intensities(image: Tensor, valid: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """Rescale the intensities of a whole volume to a range of about 0 to 1.

    Args:
        image: (X, Y, Z) intensities in the file's unit.
        valid: (X, Y, Z) whether the voxel lies in the volume.
        clip: lowest and highest intensity to keep; None for all.
    """
    if clip is not None:
        image = image.clamp(*clip)
    inside = image[valid]
    low, high = np.percentile(inside[:: -(-len(inside) // MOST_SAMPLED)].numpy(), [LOW, HIGH])
    return (image - float(low)) / max(float(high - low), 1e-6)
