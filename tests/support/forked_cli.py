"""Command line in child processes, forked from one that has already imported torch, MONAI and gradio.

Importing them takes some 20 seconds of processor time, which most tests of killed and interrupted processes
would otherwise spend on every process. Apart from that, the processes are ordinary: they have their own
output and exit status, and can be signalled and killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "medsam_app.browser.app",
        "medsam_app.commands.finetune",
        "medsam_app.commands.pretrain",
        "medsam_app.commands.segment",
        "medsam_app.commands.segment_folder",
        "medsam_app.finetuning.trainer",
        "medsam_app.io.readers",
        "medsam_app.pretraining.trainer",
        "medsam_app.predict.whole_volume",
    ]
)


def _main(arguments: list[str], out: str, err: str, environment: dict[str, str], folder: str | None) -> None:
    """Run the command line in the new process."""
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    from medsam_app.cli.app import main

    status = main(arguments)
    sys.stdout.flush()
    sys.exit(status)


class ForkedCli:
    """A running `medsam-app`, with the interface of `subprocess.Popen` as far as tests need it."""

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start `medsam-app ARGUMENTS`.

        Args:
            environment: variables to set in addition to those of this process.
            cwd: working directory.
        """
        self._files = [Path(tempfile.mkstemp(suffix=suffix)[1]) for suffix in (".out", ".err")]
        texts = [str(argument) for argument in arguments]
        folder = None if cwd is None else str(cwd)
        paths = [str(file) for file in self._files]
        self._process = _CONTEXT.Process(target=_main, args=(texts, *paths, dict(environment or {}), folder))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, the negative number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.returncode

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self._files[1].read_text()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("medsam-app", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return the output."""
        self.wait(timeout)
        return self.stdout, self.stderr

    def line_with(self, word: str, *, timeout: float = 120) -> str:
        """Wait for the first line of output that contains a word, and return it."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.returncode is None:
            for line in self.stdout.splitlines(keepends=True):
                if word in line and line.endswith("\n"):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"no line with '{word}': {self.stdout}{self.stderr}")

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def call_forked(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a test module in a forked process and return its result."""
    with _CONTEXT.Pool(1) as pool:
        return pool.apply(function, arguments)


def exit_status(function: Callable[..., object], *arguments: Any) -> int:
    """Return the exit status of a separate forked process that calls a function of a test module.

    It is 0, 1 after an exception, or the negative number of the signal that killed it.
    """
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def run_cli(
    arguments: Sequence[object], *, timeout: float = 300, environment: Mapping[str, str] | None = None
) -> ForkedCli:
    """Run `medsam-app ARGUMENTS` and wait for its end."""
    process = ForkedCli(arguments, environment=environment)
    try:
        process.wait(timeout)
    finally:
        process.kill()
    return process
