"""Replacement of files that are complete at any moment; UTF-8 text.

Every file that must not be lost or half written goes through `replace_file`: a draft is written, checked and
flushed to the disk, and only then gets its name.
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
#: Pattern of the hidden folders in which drafts are written; a process that is killed leaves its own behind.
DRAFTS = f"{_PREFIX}*"


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a draft to write and to check; it becomes `path` when the block ends without an error.

    The draft has the name of `path`, since many writers take the format from its ending and some write a
    second file next to it. It lies in a hidden folder next to `path`. All files in that folder are flushed to
    the disk and then moved next to `path`, which comes last. They get the mode of any new file, which
    depends on the umask alone. After an error, a kill or a power cut the earlier file is still there.

    Args:
        path: a file in an existing folder; it may exist.

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
            # Some writers, safetensors among them, make files that only their owner can read.
            if stat.S_IMODE(file.stat().st_mode) != mode:
                file.chmod(mode)
            with file.open("rb+") as stream:  # without a flush the new name may point to an empty file
                os.fsync(stream.fileno())
        for file in files:
            file.replace(path.parent / file.name)
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_drafts(path: Path, *, older_than: float) -> None:
    """Remove drafts of a file left behind by killed processes.

    Args:
        path: the file; it need not exist.
        older_than: seconds since the draft was last written to; 0 if no other process writes `path`.
    """
    for folder in path.parent.glob(DRAFTS):
        with suppress(OSError):
            if folder.name.rpartition("-")[0] == _stem(path):
                last = max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
                if time.time() - last >= older_than:
                    shutil.rmtree(folder, ignore_errors=True)


def _stem(path: Path) -> str:
    """Name of a draft's folder up to its random part; short enough for names of four bytes a letter."""
    return f"{_PREFIX}{path.name[:40]}"


def _mode_of_new_files(folder: Path) -> int:
    """Permissions of a file that is created in a folder. To read the umask itself, one has to set it."""
    probe = folder / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a new name is on the disk; ignored if the system cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_whole(path: Path, text: str, *, prove: Callable[[Path], None] | None = None) -> None:
    """Write UTF-8 text with `replace_file`.

    Args:
        prove: called with the draft; if it raises, `path` stays as it was.

    Raises:
        OSError: the file could not be written.
    """
    with replace_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")
        if prove is not None:
            prove(draft)


def save_whole(path: Path, text: str) -> None:
    """Write `as_text` with `write_whole`, for a file that a user requested.

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
    """Return text with undecodable bytes, as in file names, replaced by backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(*names: str) -> bool:
    """Return whether names can be written as UTF-8; those of files may hold other bytes."""
    return all(as_text(name) == name for name in names)
