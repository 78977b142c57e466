"""Memory of the machine, and errors caused by the machine instead of a file."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medsam_app.errors import MachineFault

#: Files with the limit and the use of memory of a Linux control group, and the prefix of its cached files in
#: memory.stat: for version 2 and version 1.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file "),
)


def machine_memory() -> int | None:
    """Return the total memory of this machine in bytes, or None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def free_memory() -> int | None:
    """Return the free memory in bytes, or None if the system does not report it.

    The limit of a container is taken into account.
    """
    candidates = list(_free_in_container())
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        candidates += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    if not candidates:
        # Free memory is not reported: half of the total is a safe estimate.
        total = machine_memory()
        return None if total is None else total // 2
    return min(candidates)


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield the free bytes below a container's limit; cached files count as free."""
    for limit, used, cached_prefix in _GROUPS:
        try:
            maximum, in_use = (int((root / name).read_text()) for name in (limit, used))
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
            cached_bytes = sum(int(line.split()[1]) for line in lines if line.startswith(cached_prefix))
        except (OSError, ValueError, IndexError):  # no such file, or 'max'
            continue
        yield max(0, maximum - in_use + cached_bytes)


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes since `forget_peak`, or None if not reported."""
    with suppress(OSError):  # on Linux, `resource` starts with the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Reset the peak memory of this process; do nothing if the system cannot."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def format_bytes(count: float) -> str:
    """Format bytes for a message: '3.2 GB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


_ROOM = "make room where its temporary files go (TMPDIR), and try again"


_FILES = "try again when fewer files are open, or raise the limit of open files (ulimit -n)"


_ADVICE = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EMFILE: _FILES, errno.ENFILE: _FILES}


def machine_fault(path: Path, error: OSError, *, done: str = "read") -> MachineFault | None:
    """Return the error for a file that the machine cannot read now; None if the file may be the cause.

    Args:
        path: the file.
        error: the system's error.
        done: past participle of the failed action, for the message.
    """
    advice = _ADVICE.get(error.errno or 0)
    return None if advice is None else _fault(path, error, done, advice)


def no_temporary_folder(path: Path, error: OSError) -> MachineFault:
    """Return the error for a file that could not be unpacked for lack of a temporary folder."""
    return _fault(path, error, "unpacked", _ROOM)


def _fault(path: Path, error: OSError, done: str, advice: str) -> MachineFault:
    return MachineFault(
        f"'{path.name}' could not be {done} on this machine ({error.strerror or error}); {advice}."
    )
