"""Memory check of a fine-tuning run: predictions, and changes to the plan."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsam_app.datasets.cases import Case
from medsam_app.errors import ModelError, SettingsError
from medsam_app.finetuning import memory_probe, preflight
from medsam_app.finetuning.memory_probe import Task, Trial, can_measure, next_size, run_probe
from medsam_app.finetuning.plan import Plan
from medsam_app.finetuning.preflight import fit
from medsam_app.system import machine_memory
from tests.support.forked_cli import call_forked
from tests.support.teaching_folder import ball_cases, small_plan

pytestmark = pytest.mark.skipif(not can_measure("cpu"), reason="needs the peak memory of a process")
MB = 10**6
ROOT = Path(__file__).parents[2]
#: Script that runs some steps and prints its peak memory.
RUN = """
import sys, torch
from pathlib import Path
from medsam_app.datasets.find import find_cases
from medsam_app.finetuning.trainer import FinetuneTrainer
from medsam_app.finetuning.plan import read_plan
from medsam_app.finetuning.memory_probe import peak
cases = list(find_cases(Path(sys.argv[1])).cases)
plan = read_plan(Path(sys.argv[2]))
out = Path(sys.argv[2]).parent
trainer = FinetuneTrainer(plan, cases[1:], cases[:1], out, torch.device("cpu"), memory=float(sys.argv[3]))
for _ in range(3):
    trainer.train_step()
trainer.measure(lambda: False)
print(peak("cpu"))
"""


@pytest.mark.slow
def test_the_predicted_memory_is_used(tmp_path: Path) -> None:
    cases = ball_cases(tmp_path / "data")
    plan = small_plan(window=(48, 48, 32), spacing=1.0, batch=3, rounds=(1, 2), automatic=True)
    reports: list[str] = []
    fitted = fit(plan, cases[1:], memory=8000 * MB, progress=lambda what, done: reports.append(what))
    assert (fitted.plan, fitted.notes, fitted.available) == (plan, (), 8000 * MB)
    assert reports[-1].endswith("3 windows at a time")
    (tmp_path / "plan.json").write_text(plan.text())
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(tmp_path / "data"), str(tmp_path / "plan.json")]
    run = subprocess.run([*command, str(fitted.caches)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == pytest.approx(fitted.predicted, rel=0.15)


def _used(task: Task) -> int:
    """Return the bytes of a step with one window, measured in a fresh process."""
    rows: list[dict[str, Any]] = []
    memory_probe._measure(task, rows.append)
    return rows[-1]["step"] - rows[0]["ready"]


@pytest.mark.forked
@pytest.mark.slow
def test_checkpointing_takes_less(tmp_path: Path) -> None:
    # In smaller windows the memory that the allocator retains hides the difference.
    cases = ball_cases(tmp_path)
    took = []
    for checkpointing in (False, True):
        plan = small_plan(window=(48, 48, 48), rounds=(3, 3), checkpointing=checkpointing)
        took.append(call_forked(_used, Task(plan, cases[:1], "cpu", None, 1, 1, 8000 * MB)))
    assert took[1] < 0.7 * took[0]


@pytest.mark.slow
def test_memory_of_the_parent_does_not_count(tmp_path: Path) -> None:
    # On Linux, the peak of a process includes that of its parent when it was started.
    code = "from medsam_app.finetuning.memory_probe import peak; print(peak('cpu'))"
    grown = "import numpy, subprocess, sys; block = numpy.ones(2 * 10**8)\n"
    grown += "print(subprocess.run([sys.executable, '-c', sys.argv[1]], check=True).returncode)"
    took = []
    for command in (["-c", code], ["-c", grown, code]):
        run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
        took.append(int(run.stdout.split()[0]))
    assert took[1] < took[0] + 200 * MB


@pytest.mark.slow
def test_far_too_little_memory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refusal:
        fit(small_plan(), ball_cases(tmp_path), memory=30 * MB, processes=2)
    assert str(refusal.value).startswith("Teaching sam3d_tiny does not fit: a step takes ")
    assert "and there are 15.0 MB of memory for each of 2 processes; give --memory more" in str(refusal.value)


@pytest.mark.slow
def test_errors_of_the_child_process_are_raised(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_text("hello")
    with pytest.raises(ModelError, match=r"weights\.pth"):
        run_probe(Task(small_plan(), ball_cases(tmp_path / "data")[:1], "cpu", weights, 1, 1, 8000 * MB))


@pytest.mark.parametrize("end", ["kill -9 $$", "exit 137"])
def test_a_killed_process_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    shell = tmp_path / "python"
    shell.write_text(f'#!/bin/sh\necho \'{{"ready": 7, "gradients": 0, "embedding": 0}}\'\n{end}\n')
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    trial = run_probe(Task(small_plan(), [], "cpu", None, 1, 4, 8000 * MB))
    assert (trial.killed, trial.ready, trial.steps) == (True, 7, {})


def test_the_next_size_is_likely_to_fit(tmp_path: Path) -> None:
    task = Task(small_plan(), [], "cpu", None, 1, 8, 2000 * MB)
    ready = 1000 * MB
    assert next_size(task, 1, 1100 * MB, ready) == 8
    assert next_size(task, 1, 1300 * MB, ready) == 3
    assert next_size(task, 1, 1600 * MB, ready) == 2  # possible, since 100 MB may not grow with the number
    assert next_size(task, 1, 1700 * MB, ready) is None
    assert next_size(task, 1, 2100 * MB, ready) is None
    assert next_size(task, 8, 1800 * MB, ready) is None


def formula(plan: Plan) -> tuple[int, int]:
    """Return the MB of a fictitious model before any window, and per window."""
    voxels = math.prod(plan.window) / 64**3
    per_window = 800 * voxels * (0.5 if plan.checkpointing else 1) * (0.5 if plan.cached else 1)
    return 1000, round(per_window)


def fictitious_trial(task: Task, reports: Callable[[str], None]) -> Trial:
    base, per_window = formula(task.plan)
    steps, size = {}, task.fewest
    while size:
        steps[size] = (base + per_window * size) * MB
        size = next_size(task, size, steps[size], base * MB) or 0
    return Trial(ready=base * MB, steps=steps, gradients=10 * MB, embedding=MB if task.plan.cached else 0)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Plans that were tried; their memory follows from a formula instead of a measurement."""
    plans: list[Plan] = []

    def trial(task: Task, reports: Callable[[str], None] = lambda what: None) -> Trial:
        plans.append(task.plan)
        return fictitious_trial(task, reports)

    monkeypatch.setattr(preflight, "run_probe", trial)
    return plans


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return ball_cases(tmp_path)


LARGE: dict[str, Any] = {"window": (64, 64, 64), "spacing": 1.0, "batch": 8, "rounds": (1, 2)}


@pytest.mark.parametrize(
    ("memory", "changed", "trials"),
    [
        (8000, {}, 1),
        (7300, {"micro_batch": 4}, 1),  # 7 would fit, but 4 and 4 are as fast
        (2700, {"micro_batch": 2}, 1),
        (1900, {"micro_batch": 1}, 1),
        (1500, {"micro_batch": 1, "checkpointing": True}, 2),
        (1300, {"micro_batch": 1, "checkpointing": True, "window": (48, 48, 48)}, 3),
        (1105, {"micro_batch": 1, "checkpointing": True, "window": (32, 32, 32)}, 3),
        (1048, {"micro_batch": 1, "checkpointing": True, "cached": True, "window": (32, 32, 32)}, 5),
    ],
)
def test_only_necessary_changes_are_made(
    tried: list[Plan], cases: list[Case], memory: int, changed: dict[str, Any], trials: int
) -> None:
    plan = small_plan(**LARGE)
    fitted = fit(plan, cases, memory=memory * MB)
    assert fitted.plan == plan.model_copy(update=changed)
    assert len(tried) == trials
    assert fitted.predicted <= fitted.available == memory * MB
    text = " ".join(fitted.notes)
    for field, word in {
        "micro_batch": "micro_batch",
        "checkpointing": "checkpointing",
        "cached": "cached",
    }.items():
        assert (word in text.replace("beside cached cases", "")) == (field in changed)
    assert ("Windows are" in text) == ("window" in changed)


def test_nothing_fits(tried: list[Plan], cases: list[Case]) -> None:
    with pytest.raises(
        SettingsError, match=r"a step takes 1\.0 GB at least, and there are 1\.0 GB of memory; "
    ):
        fit(small_plan(**LARGE), cases, memory=1005 * MB)
    assert tried[-1].cached
    assert tried[-1].window == (32, 32, 32)


@pytest.mark.parametrize(
    ("fixed", "memory", "changed"),
    [
        (("micro_batch",), 6000, {"checkpointing": True}),
        (("checkpointing",), 1500, {"micro_batch": 1, "window": (48, 48, 48)}),
        (("checkpointing", "window"), 1450, {"micro_batch": 1, "cached": True}),
    ],
)
def test_fixed_fields_stay(
    tried: list[Plan], cases: list[Case], fixed: tuple[str, ...], memory: int, changed: dict[str, Any]
) -> None:
    plan = small_plan(**LARGE)
    assert fit(plan, cases, memory=memory * MB, fixed=fixed).plan == plan.model_copy(update=changed)


def test_nothing_can_be_changed(tried: list[Plan], cases: list[Case]) -> None:
    fixed = ("micro_batch", "checkpointing", "window", "cached", "rotate")
    with pytest.raises(
        SettingsError, match="or leave cached and checkpointing and micro_batch and window to the program"
    ):
        fit(small_plan(**LARGE), cases, memory=1700 * MB, fixed=fixed)
    assert len(tried) == 1


def test_processes_share_windows_and_memory(tried: list[Plan], cases: list[Case]) -> None:
    plan = small_plan(**LARGE)
    fitted = fit(plan, cases, memory=2 * 4400 * MB, processes=2)
    assert fitted.plan == plan
    assert fitted.available == 4400 * MB


def test_caches_get_what_steps_leave(tried: list[Plan], cases: list[Case], tmp_path: Path) -> None:
    plan = small_plan(**LARGE | {"batch": 1})
    sizes = preflight._sizes(cases, plan)
    fitted = fit(plan, cases, memory=5000 * MB)
    assert (fitted.caches, fitted.predicted) == (sum(sizes), 1800 * MB + sum(sizes))
    fitted = fit(plan, cases, memory=1800 * MB + sizes[0])
    assert (fitted.caches, fitted.predicted) == (sizes[0], fitted.available)
    assert "are kept in memory; the others are made anew" in fitted.notes[-1]


def test_two_caches_share_free_memory() -> None:
    assert preflight._divide(100, 20, 30) == (30, 50)
    assert preflight._divide(100, 20, 300) == (80, 100)
    assert preflight._divide(100, 300, 20) == (80, 100)
    assert preflight._divide(100, 300, 200) == (50, 100)


def test_most_free_memory_is_used(tried: list[Plan], cases: list[Case]) -> None:
    total = machine_memory()
    assert total is not None
    fitted = fit(small_plan(), cases)
    assert 0 < fitted.available < 0.8 * total


def test_systems_without_peak_memory(
    tried: list[Plan], cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "can_measure", lambda device: False)
    plan = small_plan()
    fitted = fit(plan, cases, memory=100 * MB)
    assert replace(fitted, notes=(), caches=0) == preflight.FittedPlan(plan, 0, 100 * MB, 0)
    assert not tried
    assert fitted.notes


def test_a_plan_that_is_not_tried(tried: list[Plan], cases: list[Case]) -> None:
    plan = small_plan(**LARGE)
    sizes = preflight._sizes(cases, plan)
    assert sum(sizes) < 1000 * MB
    for memory, caches in ((8000 * MB, sum(sizes)), (4 * sizes[0], sizes[0] // 2)):
        fitted = preflight.unmeasured(plan, cases, memory=memory, processes=2)
        assert (fitted.plan, fitted.predicted, fitted.available) == (plan, 0, memory // 2)
        assert fitted.caches == caches
    assert not tried
