"""Mask file that the objects of a workspace are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from medsam_app.grid.patch import Patch


@dataclass(frozen=True, eq=False)
class Reference:
    """Label map that objects are compared with.

    Attributes:
        number: number that distinguishes the reference from earlier ones.
        name: name of the file.
        parts: mask of each label value that occurs.
    """

    number: int
    name: str
    parts: dict[int, Patch]
