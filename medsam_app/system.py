"""The machine: total, free and peak memory, and errors that are its fault rather than a file's."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medsam_app.errors import MachineFault

#: Where Linux says how much a group of processes may take and has taken: of version 2, and of version 1.
_GROUPS = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file "),
)


def machine_memory() -> int | None:
    """Bytes of memory of this machine, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def free_memory() -> int | None:
    """Bytes that programs can still take, None where the system does not say.

    A container's limit counts where there is one.
    """
    found = list(_free_in_container())
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    if not found:
        # The system does not report free memory: half of all is a safe guess.
        whole = machine_memory()
        return None if whole is None else whole // 2
    return min(found)


def _free_in_container(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield the free bytes below a container's limit; cached files count as free."""
    for limit, used, cached in _GROUPS:
        try:
            most, taken = (int((root / name).read_text()) for name in (limit, used))
            lines = (root / limit).with_name("memory.stat").read_text().splitlines()
            files = sum(int(line.split()[1]) for line in lines if line.startswith(cached))
        except (OSError, ValueError, IndexError):  # no such file, or 'max'
            continue
        yield max(0, most - taken + files)


def peak_memory() -> int | None:
    """Most bytes that this process had since `forget_peak`; None where the system does not say."""
    with suppress(OSError):  # on Linux, `resource` starts with the peak of the parent process
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_peak() -> None:
    """Reset the peak; where the system cannot, the peak remains that of all before."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def format_bytes(count: float) -> str:
    """Bytes for a message: '3.2 GB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


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
