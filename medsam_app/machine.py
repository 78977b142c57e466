"""What keeps a machine from reading a file, whatever the file holds."""

from __future__ import annotations

import errno
from pathlib import Path

from medsam_app.errors import MachineFault

_ROOM = "make room where its temporary files go (TMPDIR), and try again"
_FILES = "try again when fewer files are open, or raise the limit of open files (ulimit -n)"
_ADVICE = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EMFILE: _FILES, errno.ENFILE: _FILES}


def machine_fault(path: Path, error: OSError, *, done: str = "read") -> MachineFault | None:
    """Error for a file that the machine cannot read now; None where that may be the file's fault.

    Args:
        done: what could not be done with it.
    """
    advice = _ADVICE.get(error.errno or 0)
    return None if advice is None else _fault(path, error, done, advice)


def no_temporary_folder(path: Path, error: OSError) -> MachineFault:
    """Error for a file that could not be unpacked, since there is no folder to put it into."""
    return _fault(path, error, "unpacked", _ROOM)


def _fault(path: Path, error: OSError, done: str, advice: str) -> MachineFault:
    return MachineFault(
        f"'{path.name}' could not be {done} on this machine ({error.strerror or error}); {advice}."
    )
