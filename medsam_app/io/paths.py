"""Existence checks of paths, and iteration over folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medsam_app.errors import VolumeError


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; False for invalid names."""
    try:
        return path.exists()
    except (OSError, ValueError):  # name too long, or with a null character
        return False


def check_image(path: Path) -> None:
    """Check that the path of an image exists.

    Raises:
        VolumeError: there is no such file or folder.
    """
    if not path.exists():
        raise VolumeError(f"There is no file or folder {path}; give the path of an image.")


def walk_folders(folder: Path) -> Iterator[Path]:
    """Yield a folder and all below it that can be read; links are not followed further."""
    for parent, names, _ in os.walk(folder):
        path = Path(parent)
        yield path
        yield from (path / name for name in names if (path / name).is_symlink())
