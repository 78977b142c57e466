"""Processes that share a run: how many suit a machine, and what is said when one of them is gone."""

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
from medsam_app.training.processes import together
with together(torch.device("cpu"), count=2, command=["no-such-command"]):
    print("met")
"""


@pytest.mark.parametrize(
    ("threads", "given", "count"),
    [
        (8, {"minutes": 15, "batch": 4, "memory": 50e9}, 4),
        (2, {"minutes": 15, "batch": 4, "memory": 50e9}, 2),
        (1, {"minutes": 15, "batch": 4, "memory": 50e9}, 1),
        (8, {"minutes": 15, "batch": 6, "memory": 50e9}, 3),  # shared evenly
        (8, {"minutes": 15, "batch": 4, "memory": 7e9}, 2),
        (8, {"minutes": 15, "batch": 4, "memory": 1e9}, 1),
        (8, {"minutes": 3, "batch": 4, "memory": 50e9}, 1),  # over before they are ready
        (8, {"minutes": None, "batch": 4, "memory": 50e9}, 1),  # counted in steps
    ],
)
def test_as_many_as_suit(monkeypatch: pytest.MonkeyPatch, threads: int, given: dict, count: int) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert suitable_count(CPU, **given) == count
    assert suitable_count(torch.device("cuda"), **given) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert suitable_count(CPU, **given) == 1  # torchrun has started some


@pytest.mark.slow
def test_one_that_does_not_start_is_not_waited_for() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stdout == ""
    assert "One of 2 processes that share this run ended with status 2" in done.stderr
    assert "no-such-command" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - began < 150


@pytest.mark.forked
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked for in /proc")
def test_one_that_is_killed_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
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
        (other,) = _children(run.pid)
        os.kill(other, signal.SIGKILL)
        _, said = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == 2
    assert "One of 2 processes that share this run ended with signal 9" in said
    assert "goes on from the last state" in said and "Traceback" not in said


def _children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
