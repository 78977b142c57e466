"""Volumes of a folder for a worklist."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medsam_app.atomic import is_text
from medsam_app.errors import VolumeError
from medsam_app.io.volume_folder import FoundVolume, find_volumes


def volumes_for(
    folder: Path, *, leave_out: Sequence[Path] = ()
) -> tuple[list[FoundVolume], list[FoundVolume]]:
    """Return the volumes under a folder that can be cases, and those that cannot.

    The latter could not be read, or have names that are not text, which the database and the page cannot
    handle.

    Args:
        leave_out: as for `find_volumes`.

    Raises:
        VolumeError: there is none that can.
    """
    cases: list[FoundVolume] = []
    others: list[FoundVolume] = []
    for each in find_volumes(folder, leave_out=leave_out):
        named = is_text(each.case, str(each.path.relative_to(folder)), each.series or "")
        (cases if named and not each.unread else others).append(each)
    if not cases:
        raise VolumeError(
            f"The folder '{folder}' holds no volume for a worklist: {len(others)} cannot be looked at, or "
            "have names that are not UTF-8; change their permissions, or rename them."
        )
    return cases, others
