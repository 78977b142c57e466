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

    The latter cannot be read, or have names that are not UTF-8, which the database and the page cannot
    represent.

    Args:
        folder: folder to scan.
        leave_out: see `find_volumes`.

    Raises:
        VolumeError: no volume can be a case.
    """
    cases: list[FoundVolume] = []
    unusable: list[FoundVolume] = []
    for volume in find_volumes(folder, leave_out=leave_out):
        has_valid_names = is_text(volume.case, str(volume.path.relative_to(folder)), volume.series or "")
        (cases if has_valid_names and not volume.unread else unusable).append(volume)
    if not cases:
        raise VolumeError(
            f"The folder '{folder}' holds no volume for a worklist: {len(unusable)} cannot be looked at, or "
            "have names that are not UTF-8; change their permissions, or rename them."
        )
    return cases, unusable
