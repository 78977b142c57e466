"""Memory of real training steps, measured in a separate process.

What is to be tried comes as JSON on the standard input. For each thing that was done, a line of JSON goes to
the standard output, so that what was measured before the system ended the process for its memory is known.
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

#: What a process ends with that was refused memory, as one does that the system ended for it.
NO_MEMORY = 137


@dataclass(frozen=True)
class Task:
    """Training steps to measure.

    Attributes:
        cases: trained on; all are cached.
        device: of torch, by name.
        weights: of the base, instead of the published ones.
        fewest, most: windows at a time; the fewest are tried first, then more.
        limit: bytes; what is likely to take more is not tried.
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
        ready: most until the first step: the libraries, the base read from its file, the adapter, two
            volumes at a time read and put on the plan's grid.
        steps: most in a step with this many windows at a time and the plan's most rounds; of all numbers
            that were tried.
        gradients: of everything that is trained.
        embedding: of one window.
        killed: it ended for lack of memory before everything was tried.
    """

    ready: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    gradients: int = 0
    embedding: int = 0
    killed: bool = False


def can_measure(device: str) -> bool:
    """Return whether the system reports the peak memory of a process."""
    return device.startswith("cuda") or peak_memory() is not None


def try_out(task: Task, told: Callable[[str], None] = lambda what: None) -> Trial:
    """Measure a plan's steps.

    Args:
        told: called with what has been done.

    Raises:
        MedsamError: a case or the base cannot be read, or they do not go together.
    """
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-W", "ignore", "-m", "medsam_app.finetuning.memory_probe"]
    trial = Trial()
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as said:
        asked.write(TypeAdapter(Task).dump_json(task).decode())
        asked.seek(0)
        environment = os.environ | {"PYTHONPATH": paths}
        with subprocess.Popen(
            command, stdin=asked, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        ) as child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    _take(trial, json.loads(line), told)
                status = child.wait()
            except BaseException:
                child.kill()
                raise
        if status < 0 or status == NO_MEMORY:
            trial.killed = True
        elif status:
            said.seek(0)
            raise RuntimeError(f"The trial of a step ended with status {status}:\n{said.read()[-4000:]}")
    return trial


def _take(trial: Trial, row: dict[str, Any], told: Callable[[str], None]) -> None:
    """Add a line from the child process to a trial."""
    if "error" in row:
        raise getattr(errors, row["error"], MedsamError)(row["message"])
    if "ready" in row:
        trial.ready, trial.gradients, trial.embedding = row["ready"], row["gradients"], row["embedding"]
        told("ready")
    else:
        trial.steps[row["size"]] = row["step"]
        told(f"{row['size']} windows at a time" if row["size"] > 1 else "one window at a time")


def following(task: Task, size: int, took: int, ready: int) -> int | None:
    """Return how many windows at a time to try next; None to stop.

    As many as certainly fit, since a step has something that does not grow; or one more, where half of what a
    window takes is left.
    """
    each = max((took - ready) / size, 1.0)
    more = min(task.most, max(int((task.limit - ready) / each), size + (took + each / 2 <= task.limit)))
    return more if more > size and took <= task.limit else None


def peak(device: str) -> int:
    """Most bytes that this process had since `forget_peak`: of the device, or of the machine's memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_reserved(device)
    return peak_memory() or 0


def forget_peak(device: str) -> None:
    """Reset the peak memory.

    If the system cannot, the earlier peak remains, and later steps seem to take as much.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        system.forget_peak()


def _play(task: Task, tell: Callable[[dict[str, Any]], None]) -> None:
    """Train for a few steps."""
    import torch

    from medsam_app.finetuning.trainer import FinetuneTrainer
    from medsam_app.finetuning.training_windows import bytes_on_grid

    plan, most = task.plan, task.plan.rounds[1]
    cached = sum(bytes_on_grid(case, plan) for case in task.cases)
    held = 0 if task.device.startswith("cuda") else cached
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
        ready = peak(task.device) - held
        gradients = sum(p.numel() * p.element_size() for p in trainer.parameters)
        embedding = 0
        if plan.cached:
            window = trainer.windows.draw(0)
            with torch.no_grad():
                inputs = (x[None, None].to(trainer.device) for x in (window.image, window.valid))
                embedding = trainer.model.encode_image(*inputs).nbytes
        tell({"ready": ready, "gradients": gradients, "embedding": embedding})
        if ready > task.limit:
            return
        # What the optimizer keeps is there from the second step on.
        trainer.train_step()
        size, tried = task.fewest, 0
        while size != tried:
            played = {"batch": size, "micro_batch": None, "rounds": (most, most)}
            trainer.settings = plan.model_copy(update=played)
            forget_peak(task.device)
            trainer.train_step()
            tried = size
            size = following(task, size, peak(task.device) - held, ready) or size
            if size == tried:  # the allocator has more to keep after the first time
                trainer.train_step()
            tell({"size": tried, "step": peak(task.device) - held})


def main() -> None:
    """Run the measurement; entry point of the process."""
    out, sys.stdout = sys.stdout, sys.stderr

    def tell(row: dict[str, Any]) -> None:
        out.write(json.dumps(row) + "\n")
        out.flush()

    with suppress(OSError):  # where memory ends, this is the process to be ended
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        _play(TypeAdapter(Task).validate_json(sys.stdin.read()), tell)
    except MedsamError as error:
        tell({"error": type(error).__name__, "message": str(error)})
    except MemoryError:
        sys.exit(NO_MEMORY)
    except RuntimeError as error:  # torch's words, on a CPU and on CUDA
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        sys.exit(NO_MEMORY)


def largest(cases: Sequence[Case], sizes: Sequence[int], count: int = 2) -> list[Case]:
    """Return the largest cases, so that a trial measures the memory of reading."""
    order = sorted(range(len(cases)), key=lambda n: (-sizes[n], n))
    return [cases[n] for n in order[:count]]


if __name__ == "__main__":
    main()
