"""Files that pages may open: only those in the folders the server was started with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from medsam_app.atomic import is_text
from medsam_app.errors import VolumeError
from medsam_app.io.formats import LISTED

#: Largest number of files in one upload of a folder.
UPLOAD_FILES = 20_000
_MOST_ENTRIES = 2000
_NAME_BYTES = 200


def resolve(roots: Sequence[Path], root: int, path: str) -> Path:
    """Return the absolute path of a file or folder within a root.

    Links are resolved before the check.

    Args:
        roots: folders that may be opened.
        root: index of the root.
        path: path relative to the root.

    Raises:
        VolumeError: the path is not within the root, or does not exist.
    """
    if not 0 <= root < len(roots) or "\0" in path:
        raise VolumeError("That folder is not one that this server shows; choose one from the list.")
    base = roots[root].resolve()
    try:
        target = (base / path).resolve()
        allowed = target.is_relative_to(base) and target.exists()
    except (OSError, RuntimeError, ValueError):
        allowed = False
    if not allowed:
        raise VolumeError("That file is not in the folders that this server shows; choose one from the list.")
    return target


def listing(roots: Sequence[Path], root: int, path: str) -> list[dict[str, Any]]:
    """Return the folders and volumes in a folder: name, kind ('folder', 'dicom' or 'file') and size in bytes.

    Entries that cannot be read, or whose names are not valid text, are left out.

    Args:
        roots: folders that may be opened.
        root: index of the root.
        path: path of the folder relative to the root.

    Raises:
        VolumeError: the folder is not within the root, or cannot be read.
    """
    folder = resolve(roots, root, path)
    base = roots[root].resolve()
    if not folder.is_dir():
        raise VolumeError("That is a file, not a folder; choose a folder from the list.")
    try:
        entries = [entry for path in folder.iterdir() if (entry := _entry(path, base)) is not None]
    except OSError as error:
        raise VolumeError(f"The folder cannot be read ({error.strerror}); choose another one.") from None
    return sorted(entries, key=lambda entry: (entry["kind"] == "file", entry["name"].lower()))[:_MOST_ENTRIES]


def _entry(path: Path, base: Path) -> dict[str, Any] | None:
    """Return the entry of a file or folder for the page; None if it is not listed."""
    if path.name.startswith(".") or not is_text(path.name):
        return None
    try:
        if not path.resolve().is_relative_to(base):
            return None
        if path.is_dir():
            return {"name": path.name, "kind": "dicom" if holds_dicom(path) else "folder", "size": 0}
        if path.name.lower().endswith(LISTED):
            return {"name": path.name, "kind": "file", "size": path.stat().st_size}
    except (OSError, RuntimeError):  # RuntimeError: symbolic link loop, before Python 3.13
        pass
    return None


def holds_dicom(folder: Path) -> bool:
    """Return whether one of the first 20 entries of a folder is a DICOM file.

    Raises:
        OSError: the folder cannot be listed.
    """
    for path in islice(folder.iterdir(), 20):
        with suppress(OSError):
            if not path.is_file():
                continue
            if path.suffix.lower() == ".dcm":
                return True
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    return True
    return False


def safe_name(name: str) -> str:
    """Return the file name to store an upload under, without folders and special characters.

    The rest of the name is kept because messages and prompt files contain it.
    """
    plain = re.sub(r"[^\w.\- ]", "_", Path(name.replace("\\", "/")).name)
    return plain.encode()[-_NAME_BYTES:].decode(errors="ignore").lstrip(".") or "file"
