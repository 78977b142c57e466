"""Atomic replacement of files, and UTF-8 text.

Every file that must not be lost or partially written goes through `replace_file`: a draft is written, checked
and flushed to the disk, and only then renamed.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medsam_app.errors import SaveError

_PREFIX = ".saving-"
#: Pattern of the hidden folders that hold drafts; a killed process leaves its folder behind.
DRAFTS = f"{_PREFIX}*"


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a draft, which replaces `path` when the block ends without an error.

    The draft is in a hidden folder next to `path` and has the same name: many writers derive the format from
    the suffix, and some write a second file next to the first. All files in that folder are flushed to the
    disk and then moved to the folder of `path`, the draft last. They get the mode of new files, which depends
    only on the umask. After an error, a kill or a power failure, the earlier file still exists.

    Args:
        path: file to replace or create, in an existing folder.

    Raises:
        OSError: a file or the hidden folder could not be written or moved.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{_stem(path)}-", dir=path.parent))
    try:
        mode = _mode_of_new_files(folder)
        draft = folder / path.name
        yield draft
        files = [*(file for file in sorted(folder.iterdir()) if file != draft), draft]
        for file in files:
            # Some writers, such as safetensors, create files that only the owner can read.
            if stat.S_IMODE(file.stat().st_mode) != mode:
                file.chmod(mode)
            with file.open("rb+") as stream:  # otherwise the new name may refer to an empty file
                os.fsync(stream.fileno())
        for file in files:
            file.replace(path.parent / file.name)
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_drafts(path: Path, *, older_than: float) -> None:
    """Remove drafts of a file that killed processes left behind.

    Args:
        path: the file; it need not exist.
        older_than: least seconds since the last write to the draft; 0 if no other process writes `path`.
    """
    for folder in path.parent.glob(DRAFTS):
        with suppress(OSError):
            if folder.name.rpartition("-")[0] == _stem(path):
                last = max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
                if time.time() - last >= older_than:
                    shutil.rmtree(folder, ignore_errors=True)


def _stem(path: Path) -> str:
    """Return the name of a draft's folder without its random part.

    It is short enough for names with four bytes per character.
    """
    return f"{_PREFIX}{path.name[:40]}"


def _mode_of_new_files(folder: Path) -> int:
    """Return the permissions of a new file in a folder, since the umask cannot be read without setting it."""
    probe = folder / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a new name is on the disk; do nothing if the system cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, text: str, *, prove: Callable[[Path], None] | None = None) -> None:
    """Write UTF-8 text with `replace_file`.

    Args:
        path: file to write.
        text: content of the file.
        prove: check called with the draft; if it raises, `path` is unchanged.

    Raises:
        OSError: the file could not be written.
    """
    with replace_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")
        if prove is not None:
            prove(draft)


def save_whole(path: Path, text: str) -> None:
    """Write text that may hold undecodable bytes, for a file that the user requested.

    Raises:
        SaveError: the file could not be written.
    """
    try:
        write_whole(path, as_text(text))
    except OSError as error:
        raise SaveError(
            f"{path} could not be written ({error.strerror or error}); free some space or write elsewhere."
        ) from None


def as_text(text: str) -> str:
    """Return text with undecodable bytes, such as in file names, replaced by backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(*names: str) -> bool:
    """Return whether names can be written as UTF-8; file names may hold other bytes."""
    return all(as_text(name) == name for name in names)
