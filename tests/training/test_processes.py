"""Processes that share a run: their number, and the message if one of them ends early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medsam_app.training.processes import suitable_count
from tests.support.forked_cli import ForkedCli
from tests.support.teaching_folder import write_balls

CPU = torch.device("cpu")
START = """
import torch
from medsam_app.training.processes import process_group
with process_group(torch.device("cpu"), count=2, command=["no-such-command"]):
    print("met")
"""


@pytest.mark.parametrize(
    ("threads", "arguments", "count"),
    [
        (8, {"minutes": 15, "batch": 4, "memory": 50e9}, 4),
        (2, {"minutes": 15, "batch": 4, "memory": 50e9}, 2),
        (1, {"minutes": 15, "batch": 4, "memory": 50e9}, 1),
        (8, {"minutes": 15, "batch": 6, "memory": 50e9}, 3),  # shared evenly
        (8, {"minutes": 15, "batch": 4, "memory": 7e9}, 2),
        (8, {"minutes": 15, "batch": 4, "memory": 1e9}, 1),
        (8, {"minutes": 3, "batch": 4, "memory": 50e9}, 1),  # too short to be worth starting them
        (8, {"minutes": None, "batch": 4, "memory": 50e9}, 1),  # counted in steps
    ],
)
def test_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, threads: int, arguments: dict, count: int
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert suitable_count(CPU, **arguments) == count
    assert suitable_count(torch.device("cuda"), **arguments) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert suitable_count(CPU, **arguments) == 1  # torchrun has started the processes


@pytest.mark.slow
def test_a_process_that_fails_to_start_ends_the_run() -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stdout == ""
    assert "One of 2 processes that share this run ended with status 2" in done.stderr
    assert "no-such-command" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - start < 150


@pytest.mark.forked
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_killed_process_ends_the_run_with_a_message(tmp_path: Path) -> None:
    data = write_balls(tmp_path / "data")
    command = ["finetune", str(data), "-o", str(tmp_path / "balls")]
    command += ["--steps", "5000", "--set", "batch=2", "--set", "window=[16,16,16]", "--set", "spacing=2"]
    command += ["--set", "validate_steps=0", "--device", "cpu", "--no-preflight", "--processes", "2"]
    run = ForkedCli(command)
    try:
        log, end = tmp_path / "balls.run" / "log.jsonl", time.monotonic() + 200
        while not (log.exists() and log.stat().st_size):
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.2)
        (child,) = _children(run.pid)
        os.kill(child, signal.SIGKILL)
        _, errors = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == 2
    assert "One of 2 processes that share this run ended with signal 9" in errors
    assert "goes on from the last state" in errors and "Traceback" not in errors


def _children(pid: int) -> list[int]:
    """Return the ids of the children of a process."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids
