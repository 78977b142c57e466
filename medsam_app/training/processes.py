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

if TYPE_CHECKING:  # slow to import
    import torch

#: Timeout of collectives. Processes wait for the first one, which validates, and for each other while they
#: read.
PATIENCE = timedelta(hours=3)
#: Most processes started here, free bytes needed per process, and shortest run in minutes worth sharing.
MOST_PROCESSES, ROOMY_BYTES, WORTH_MINUTES = 4, 3e9, 5.0
#: Seconds until a process that does not end is killed.
GRACE = 60.0


def is_first() -> bool:
    """Return whether this is the first process of a run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """Return the number of processes of a run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_device(requested: str) -> tuple[torch.device, str]:
    """Return the device of this process and a sentence that names it.

    With torchrun and CUDA, each process uses the GPU of its local rank.

    Args:
        requested: name of a device, as for `choose_device`.

    Raises:
        SettingsError: several processes of a machine would share one GPU.
    """
    import torch

    from medsam_app.models.load import choose_device

    device, sentence = choose_device(requested)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise SettingsError(
                f"Each process takes a GPU of its own, but --device names {device} for all; give cuda."
            )
        device, sentence = choose_device(
            f"cuda:{os.environ['LOCAL_RANK']}" if device.index is None else requested
        )
        torch.cuda.set_device(device)
    return device, sentence


def suitable_count(
    device: torch.device, *, minutes: float | None, batch: int, memory: int | None = None
) -> int:
    """Return a suitable number of processes: several on a CPU, otherwise one.

    A step on small windows is too short to use all cores in one process.

    Args:
        device: device of the run.
        minutes: length of the run; None for a run counted in steps, which gets one process on any machine.
        batch: windows per update, which are shared evenly.
        memory: bytes for all processes; None for the free memory.
    """
    if "WORLD_SIZE" in os.environ or device.type != "cpu" or (minutes or 0) < WORTH_MINUTES:
        return 1
    import torch

    fitting = int((free_memory() or 0 if memory is None else memory) // ROOMY_BYTES)
    most = min(MOST_PROCESSES, torch.get_num_threads(), fitting)
    return max((n for n in range(1, most + 1) if batch % n == 0), default=1)


@contextmanager
def process_group(device: torch.device, *, count: int = 1, command: Sequence[str] = ()) -> Iterator[None]:
    """Join the other processes of a run: those that torchrun started, or those that are started here.

    Args:
        device: device of this process.
        count: number of processes including this one, if torchrun started none.
        command: arguments of `medsam-app` for the processes started here.

    Raises:
        SettingsError: a process started here ended too early.
    """
    if "WORLD_SIZE" not in os.environ and count == 1:
        yield
        return
    with nullcontext() if "WORLD_SIZE" in os.environ else _started(count - 1, command) as peers:
        import torch.distributed as dist

        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        if peers is not None:
            peers.connected = True
        try:
            yield
        finally:
            dist.destroy_process_group()


class _Peers:
    """Processes that this one started to share its run.

    Attributes:
        connected: whether all processes have joined the group; before that, a failure shows only when a
            process ends.
    """

    def __init__(self) -> None:
        self.connected = False
        self._children: list[subprocess.Popen[bytes]] = []
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "medsam_app.cli.supervised", *command],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,  # New session: only rank 0 receives Ctrl-C and forwards it.
        )
        self._children.append(child)
        threading.Thread(target=self._watch, args=(child,), daemon=True).start()

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        if child.wait() and not self.connected:  # Rank 0 would block in the collective until the timeout.
            note(f"Error: {self._describe_failure(child)}")
            os._exit(2)

    def failure(self) -> str | None:
        """Return a sentence on the first failed process, or None."""
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):  # the process may be about to end
                if child.wait(timeout=2):
                    return self._describe_failure(child)
        return None

    def _describe_failure(self, child: subprocess.Popen[bytes]) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        how = f"status {child.returncode}" if child.returncode > 0 else f"signal {-child.returncode}"
        output = f" and said: {lines[-1]}" if lines else ""
        return (
            f"One of {len(self._children) + 1} processes that share this run ended with {how}{output}. The "
            "same command goes on from the last state that was saved; --processes 1 takes less memory."
        )

    def end(self) -> None:
        """Wait for the processes to end; kill those that do not."""
        self.connected = True
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            try:
                child.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._stderr.close()


@contextmanager
def _started(count: int, command: Sequence[str]) -> Iterator[_Peers]:
    """Start further processes of a run on this machine; the cores are divided among all."""
    import torch

    threads, threads_each = torch.get_num_threads(), max(1, torch.get_num_threads() // (count + 1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count + 1), "LOCAL_WORLD_SIZE": str(count + 1)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":  # the host name may not resolve to this machine
        world["GLOO_SOCKET_IFNAME"] = "lo"
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    before, peers = dict(os.environ), _Peers()
    try:
        for rank in range(1, count + 1):
            ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads_each)}
            peers.start(command, os.environ | world | ranked | {"PYTHONPATH": paths})
        os.environ.update(world | {"RANK": "0", "LOCAL_RANK": "0"})
        torch.set_num_threads(threads_each)
        yield peers
    except RuntimeError:  # torch raises it if another process is gone
        if (failure := peers.failure()) is None:
            raise
        raise SettingsError(failure) from None
    finally:
        for name in (*world, "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
        torch.set_num_threads(threads)
        peers.end()


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Handle Ctrl-C and SIGTERM as a request to stop after the current step.

    A second Ctrl-C stops at once, except under torchrun: it forwards a Ctrl-C that every process has already
    received from the terminal.

    Yields:
        A function that returns whether a stop was requested.
    """
    requested = False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
