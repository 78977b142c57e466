"""Paths that may not exist, and walks through folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medsam_app.errors import VolumeError


def there(path: Path) -> bool:
    """Return whether a file or folder exists; False for impossible names."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero in it
        return False


def check_image(path: Path) -> None:
    """Refuse the path of an image that does not exist.

    Raises:
        VolumeError: there is neither a file nor a folder.
    """
    if not path.exists():
        raise VolumeError(f"There is no file or folder {path}; give the path of an image.")


def folders_under(folder: Path) -> Iterator[Path]:
    """Yield a folder and all below it that can be read; links are not followed further."""
    for place, inside, _ in os.walk(folder):
        here = Path(place)
        yield here
        yield from (here / name for name in inside if (here / name).is_symlink())
