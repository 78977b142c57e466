"""Processes of a training run: their number and devices, start and stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from medsam_app.console import note
from medsam_app.errors import SettingsError
from medsam_app.system import free_memory

if TYPE_CHECKING:  # heavy
    import torch

#: How long processes wait for the first, which measures, and for each other while they read.
PATIENCE = timedelta(hours=3)
#: Most processes started here, free bytes needed for each, and minutes from which it pays.
MOST_PROCESSES, ROOMY_BYTES, WORTH_MINUTES = 4, 3e9, 5.0
#: Seconds that processes have to end.
GRACE = 60.0


def is_first() -> bool:
    """Return whether this is the first of the processes that share a run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Return the number of processes of a run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_device(wanted: str) -> tuple[torch.device, str]:
    """The device of this process, and a sentence that says so; torchrun numbers a machine's processes."""
    import torch

    from medsam_app.models.load import choose_device

    device, told = choose_device(wanted)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise SettingsError(
                f"Each process takes a GPU of its own, but --device names {device} for all; give cuda."
            )
        device, told = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if device.index is None else wanted)
        torch.cuda.set_device(device)
    return device, told


def suitable_count(
    device: torch.device, *, minutes: float | None, batch: int, memory: int | None = None
) -> int:
    """Return a suitable number of processes: several on a CPU, otherwise one.

    The steps of a small window are too short for all cores to have their share of each.

    Args:
        minutes: of training; a run counted in steps is one process's, whatever the machine.
        batch: windows of an update, which are shared evenly.
        memory: bytes for all; None for what is free.
    """
    if "WORLD_SIZE" in os.environ or device.type != "cpu" or (minutes or 0) < WORTH_MINUTES:
        return 1
    import torch

    room = int((free_memory() or 0 if memory is None else memory) // ROOMY_BYTES)
    most = min(MOST_PROCESSES, torch.get_num_threads(), room)
    return max((n for n in range(1, most + 1) if batch % n == 0), default=1)


@contextmanager
def together(device: torch.device, *, count: int = 1, command: Sequence[str] = ()) -> Iterator[None]:
    """Join the other processes of a run: those that torchrun started, or some that are started here.

    Args:
        count: how many there are to be, this one included, where torchrun started none.
        command: arguments of `medsam-app` that the others are started with.

    Raises:
        SettingsError: one of those started here ended before its time.
    """
    if "WORLD_SIZE" not in os.environ and count == 1:
        yield
        return
    with nullcontext() if "WORLD_SIZE" in os.environ else _started(count - 1, command) as others:
        import torch.distributed as dist

        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        if others is not None:
            others.met = True
        try:
            yield
        finally:
            dist.destroy_process_group()


class _Others:
    """Processes that this one started to share its run.

    Attributes:
        met: whether all have found each other; until then nothing but the end of one says that it is gone.
    """

    def __init__(self) -> None:
        self.met = False
        self._children: list[subprocess.Popen[bytes]] = []
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "medsam_app.cli.supervised", *command],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # New session: only rank 0 receives Ctrl-C and forwards it.
        )
        self._children.append(child)
        threading.Thread(target=self._watch, args=(child,), daemon=True).start()

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        if child.wait() and not self.met:  # Rank 0 would block in the collective until the timeout.
            note(f"Error: {self._told(child)}")
            os._exit(2)

    def why(self) -> str | None:
        """A sentence, where one of them has failed."""
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):  # it may be ending
                if child.wait(timeout=2):
                    return self._told(child)
        return None

    def _told(self, child: subprocess.Popen[bytes]) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        how = f"status {child.returncode}" if child.returncode > 0 else f"signal {-child.returncode}"
        said = f" and said: {lines[-1]}" if lines else ""
        return (
            f"One of {len(self._children) + 1} processes that share this run ended with {how}{said}. The "
            "same command goes on from the last state that was saved; --processes 1 takes less memory."
        )

    def end(self) -> None:
        """Let them end, and see that they do."""
        self.met = True
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            try:
                child.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._said.close()


@contextmanager
def _started(count: int, command: Sequence[str]) -> Iterator[_Others]:
    """Start the others of a run on this machine; the cores are shared out among all."""
    import torch

    threads, each = torch.get_num_threads(), max(1, torch.get_num_threads() // (count + 1))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"WORLD_SIZE": str(count + 1), "LOCAL_WORLD_SIZE": str(count + 1)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":  # the name of the machine need not lead to it
        world["GLOO_SOCKET_IFNAME"] = "lo"
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    before, others = dict(os.environ), _Others()
    try:
        for rank in range(1, count + 1):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(each)}
            others.start(command, os.environ | world | own | {"PYTHONPATH": paths})
        os.environ.update(world | {"RANK": "0", "LOCAL_RANK": "0"})
        torch.set_num_threads(each)
        yield others
    except RuntimeError:  # what torch raises when another process is gone
        if (why := others.why()) is None:
            raise
        raise SettingsError(why) from None
    finally:
        for name in (*world, "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
        torch.set_num_threads(threads)
        others.end()


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Take Ctrl-C and SIGTERM as a wish to stop after the step; yields what says whether there is one.

    A second Ctrl-C stops at once, unless torchrun is there, which passes on the one that all have got.
    """
    wished = False

    def wish(number: int, frame: FrameType | None) -> None:
        nonlocal wished
        wished = True
        if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
