"""The mask file that a workspace's objects are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from medsam_app.grid.patch import Patch


@dataclass(frozen=True, eq=False)
class Reference:
    """A label map to compare objects with.

    Attributes:
        number: distinguishes it from earlier ones.
        name: of its file.
        parts: the mask of each label that occurs.
    """

    number: int
    name: str
    parts: dict[int, Patch]
