"""Memory of real training steps, measured in a separate process.

The process reads its task as JSON from standard input. It writes one line of JSON per measurement to standard
output, so that the measurements survive if the system kills the process for its memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from medsam_app import errors, system
from medsam_app.datasets.cases import Case
from medsam_app.errors import MedsamError
from medsam_app.finetuning.plan import Plan
from medsam_app.system import peak_memory

#: Exit status for lack of memory; a shell reports the same one for a process that the system killed.
NO_MEMORY = 137


@dataclass(frozen=True)
class Task:
    """Training steps to measure.

    Attributes:
        plan: plan of the run.
        cases: cases to train on, all of which are cached.
        device: name of a torch device.
        weights: weights of the base; None for the published ones.
        fewest, most: range of windows at a time; the fewest are measured first.
        limit: bytes; steps that would probably take more are skipped.
    """

    plan: Plan
    cases: list[Case]
    device: str
    weights: Path | None
    fewest: int
    most: int
    limit: int


@dataclass
class Trial:
    """Measured memory in bytes of one process, without cached cases.

    Attributes:
        ready: peak before the first step: the libraries, loading the base, the adapter, and two volumes at a
            time read and resampled to the plan's grid.
        steps: peak in a step with the plan's most rounds, by the number of windows at a time.
        gradients: gradients of everything that is trained.
        embedding: embedding of one window; 0 if the plan does not cache embeddings.
        killed: whether the process ended for lack of memory.
    """

    ready: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    gradients: int = 0
    embedding: int = 0
    killed: bool = False


def can_measure(device: str) -> bool:
    """Return whether the system reports the peak memory of a process."""
    return device.startswith("cuda") or peak_memory() is not None


def run_probe(task: Task, report: Callable[[str], None] = lambda what: None) -> Trial:
    """Measure the training steps of a task in a separate process.

    Args:
        task: the steps.
        report: called with a description after each measurement.

    Raises:
        MedsamError: a case or the base cannot be read, or they do not match.
    """
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-W", "ignore", "-m", "medsam_app.finetuning.memory_probe"]
    trial = Trial()
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as stderr:
        stdin.write(TypeAdapter(Task).dump_json(task).decode())
        stdin.seek(0)
        environment = os.environ | {"PYTHONPATH": paths}
        with subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        ) as child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    _add_row(trial, json.loads(line), report)
                status = child.wait()
            except BaseException:
                child.kill()
                raise
        if status < 0 or status == NO_MEMORY:
            trial.killed = True
        elif status:
            stderr.seek(0)
            raise RuntimeError(f"The trial of a step ended with status {status}:\n{stderr.read()[-4000:]}")
    return trial


def _add_row(trial: Trial, row: dict[str, Any], report: Callable[[str], None]) -> None:
    """Add a row from the child process to a trial."""
    if "error" in row:
        raise getattr(errors, row["error"], MedsamError)(row["message"])
    if "ready" in row:
        trial.ready, trial.gradients, trial.embedding = row["ready"], row["gradients"], row["embedding"]
        report("ready")
    else:
        trial.steps[row["size"]] = row["step"]
        report(f"{row['size']} windows at a time" if row["size"] > 1 else "one window at a time")


def next_size(task: Task, size: int, used: int, ready: int) -> int | None:
    """Return the number of windows at a time to measure next; None to stop.

    It is the largest number that certainly fits: some memory of a step does not grow with the number. Or it
    is one more, if half the memory of another window is free.

    Args:
        task: the steps.
        size: windows at a time in the last step.
        used: peak in bytes of the last step.
        ready: peak in bytes before the first step.
    """
    per_window = max((used - ready) / size, 1.0)
    following = size + (used + per_window / 2 <= task.limit)
    larger = min(task.most, max(int((task.limit - ready) / per_window), following))
    return larger if larger > size and used <= task.limit else None


def peak(device: str) -> int:
    """Return the peak memory in bytes of this process since `forget_peak`: of the GPU, or of the machine."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_reserved(device)
    return peak_memory() or 0


def forget_peak(device: str) -> None:
    """Reset the peak memory.

    If the system cannot reset it, the earlier peak remains a lower bound for later steps.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        system.forget_peak()


def _measure(task: Task, send: Callable[[dict[str, Any]], None]) -> None:
    """Train for a few steps and send a row per measurement."""
    import torch

    from medsam_app.finetuning.trainer import FinetuneTrainer
    from medsam_app.finetuning.training_windows import bytes_on_grid

    plan, most = task.plan, task.plan.rounds[1]
    cached = sum(bytes_on_grid(case, plan) for case in task.cases)
    cache = 0 if task.device.startswith("cuda") else cached
    with tempfile.TemporaryDirectory() as folder:
        trainer = FinetuneTrainer(
            plan.model_copy(update={"batch": 1, "micro_batch": None, "rounds": (1, 1)}),
            task.cases,
            [],
            Path(folder),
            torch.device(task.device),
            weights=task.weights,
            memory=1e15,
        )
        ready = peak(task.device) - cache
        gradients = sum(p.numel() * p.element_size() for p in trainer.parameters)
        embedding = 0
        if plan.cached:
            window = trainer.windows.draw(0)
            with torch.no_grad():
                inputs = (x[None, None].to(trainer.device) for x in (window.image, window.valid))
                embedding = trainer.model.encode_image(*inputs).nbytes
        send({"ready": ready, "gradients": gradients, "embedding": embedding})
        if ready > task.limit:
            return
        # The optimizer allocates its state in the first step.
        trainer.train_step()
        size, measured = task.fewest, 0
        while size != measured:
            changes = {"batch": size, "micro_batch": None, "rounds": (most, most)}
            trainer.settings = plan.model_copy(update=changes)
            forget_peak(task.device)
            trainer.train_step()
            measured = size
            size = next_size(task, size, peak(task.device) - cache, ready) or size
            if size == measured:  # the allocator reserves more in a second step
                trainer.train_step()
            send({"size": measured, "step": peak(task.device) - cache})


def main() -> None:
    """Measure the task on standard input; entry point of the process."""
    out, sys.stdout = sys.stdout, sys.stderr

    def send(row: dict[str, Any]) -> None:
        out.write(json.dumps(row) + "\n")
        out.flush()

    with suppress(OSError):  # if memory runs out, Linux kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        _measure(TypeAdapter(Task).validate_json(sys.stdin.read()), send)
    except MedsamError as error:
        send({"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        sys.exit(NO_MEMORY)
    except RuntimeError as error:  # torch's messages on a CPU and on CUDA
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        sys.exit(NO_MEMORY)


def largest(cases: Sequence[Case], sizes: Sequence[int], count: int = 2) -> list[Case]:
    """Return the largest cases, whose reading takes the most memory.

    Args:
        cases: cases to choose from.
        sizes: cached size of each case in bytes.
        count: number of cases to return.
    """
    order = sorted(range(len(cases)), key=lambda n: (-sizes[n], n))
    return [cases[n] for n in order[:count]]


if __name__ == "__main__":
    main()
