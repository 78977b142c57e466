"""Settings of a session that decide its masks besides the prompts and the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medsam_app.errors import SettingsError

#: Which object a voxel belongs to where masks overlap: the later one in the list, or the earlier one.
Overlap = Literal["later", "earlier"]


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Settings that decide the label map besides the volume, the model and the prompts.

    Fields have no defaults: code that builds settings from another form, such as a prompt file, has to name
    all of them.

    Attributes:
        overlap: which object owns a voxel of two masks. Objects are layers in the order of the list: with
            'later' the later one covers the earlier, so that a lesion drawn after its organ is visible;
            with 'earlier' it is the other way round.
        refine: whether outlines of objects that are large for the model's window are drawn in tiles.
        by_label: whether an object whose label value the adapter in use has learned is segmented as that
            label, and not as any object that the prompts may mean.

    Raises:
        SettingsError: an unknown `overlap`.
    """

    overlap: Overlap
    refine: bool
    by_label: bool

    def __post_init__(self) -> None:
        if self.overlap not in ("later", "earlier"):
            raise SettingsError(f"overlap must be 'later' or 'earlier'; got '{self.overlap}'.")
