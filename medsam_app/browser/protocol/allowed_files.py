"""Files on the server that a browser may open: those in the folders it was started with, and no others."""

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

#: Files that one upload of a folder may hold.
UPLOAD_FILES = 20_000
_MOST_ENTRIES = 2000
_NAME_BYTES = 200


def resolve(roots: Sequence[Path], root: int, path: str) -> Path:
    """The file or folder of a path within a root; links are followed before it is judged.

    Raises:
        VolumeError: it is not within the root, or not there.
    """
    if not 0 <= root < len(roots) or "\0" in path:
        raise VolumeError("That folder is not one that this server shows; choose one from the list.")
    base = roots[root].resolve()
    try:
        target = (base / path).resolve()
        known = target.is_relative_to(base) and target.exists()
    except (OSError, RuntimeError, ValueError):
        known = False
    if not known:
        raise VolumeError("That file is not in the folders that this server shows; choose one from the list.")
    return target


def listing(roots: Sequence[Path], root: int, path: str) -> list[dict[str, Any]]:
    """Folders and volumes in a folder: name, kind ('folder', 'dicom' or 'file') and size in bytes.

    Raises:
        VolumeError: the folder is not within the root, or cannot be read. What cannot be read in it, and
            names that are no text, are left out.
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
    """Return a page's entry for a file or folder; None if it is not listed."""
    if path.name.startswith(".") or not is_text(path.name):
        return None
    try:
        if not path.resolve().is_relative_to(base):
            return None
        if path.is_dir():
            return {"name": path.name, "kind": "dicom" if holds_dicom(path) else "folder", "size": 0}
        if path.name.lower().endswith(LISTED):
            return {"name": path.name, "kind": "file", "size": path.stat().st_size}
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        pass
    return None


def holds_dicom(folder: Path) -> bool:
    """Return whether one of the first files of a folder is a DICOM file.

    Raises:
        OSError: the folder cannot be looked into.
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
    """Return a name without folders and odd characters, to store an upload under.

    The rest of the name is kept, since messages and prompt files mention it.
    """
    plain = re.sub(r"[^\w.\- ]", "_", Path(name.replace("\\", "/")).name)
    return plain.encode()[-_NAME_BYTES:].decode(errors="ignore").lstrip(".") or "file"
