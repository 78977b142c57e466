"""Text files that are whole at any time, whatever happens while they are written, and what is text at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from medsam_app.errors import SaveError


def write_whole(path: Path, text: str, *, prove: Callable[[Path], None] | None = None) -> None:
    """Write UTF-8 under a temporary name beside `path`, prove it, then rename.

    Args:
        prove: called with the temporary file; what it raises leaves `path` as it was.

    Raises:
        OSError: the file could not be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if prove is not None:
            prove(temporary)
        # mkstemp makes files that only their owner reads; the umask says what is wanted here.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_whole(path: Path, text: str) -> None:
    """`write_whole` of `as_text` for a file that a user asked for.

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
    """Text in which what is none, as names of files may hold, is a backslash and its number."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(*names: str) -> bool:
    """Whether names can be written as UTF-8; those of files may hold other bytes."""
    return all(as_text(name) == name for name in names)
