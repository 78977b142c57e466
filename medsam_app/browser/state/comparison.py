"""The mask file that a workspace's objects are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.roi import Index


@dataclass(frozen=True, eq=False)
class Reference:
    """A label map to compare objects with.

    Attributes:
        number: tells it from those before.
        name: of its file.
        parts: of each label that occurs, the first voxel (i, j, k) and the mask within its box.
    """

    number: int
    name: str
    parts: dict[int, tuple[Index, NDArray[np.bool_]]]
