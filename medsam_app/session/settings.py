"""Settings of a session that affect its masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medsam_app.errors import SettingsError

#: Which object owns a voxel of two masks: the later or the earlier one in the list.
Overlap = Literal["later", "earlier"]


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Settings that affect the label map, in addition to the volume, the model and the prompts.

    Fields have no defaults: code that builds settings from another form, such as a prompt file, must name all
    of them.

    Attributes:
        overlap: which object owns a voxel of two masks. Objects are layers in the order of the list: with
            'later' the later one covers the earlier one, so that a lesion drawn after its organ is visible;
            with 'earlier' the earlier one covers the later one.
        refine: whether the outlines of objects that are large for the model's window are refined in tiles.
        by_label: whether an object whose label value the adapter has learned is segmented as that label,
            instead of as the object that the prompts suggest.

    Raises:
        SettingsError: `overlap` is unknown.
    """

    overlap: Overlap
    refine: bool
    by_label: bool

    def __post_init__(self) -> None:
        if self.overlap not in ("later", "earlier"):
            raise SettingsError(f"overlap must be 'later' or 'earlier'; got '{self.overlap}'.")
