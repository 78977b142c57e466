"""Memory check of a fine-tuning run, which adapts the plan to the memory.

fitted = fit(plan, cases, memory=6_000_000_000, device="cpu")
FinetuneTrainer(fitted.plan, ..., memory=fitted.caches)

Real steps are measured in a separate process (`medsam_app.finetuning.memory_probe`): with one window at a
time, and with the planned number, or the largest number that fits. Linear extrapolation from one and two
windows would be wrong by a tenth, since the libraries process one window differently from several. Each
process of a run uses memory for:

- a constant part: Python and torch with their libraries, the base, the adapter, its running average and the
  two moments of the optimizer;
- windows: activations of the encoder and of every round, times the number of windows at a time, and memory
  that the allocator retains;
- caches: cases on the plan's grid, and embeddings if the plan caches them. Their size is computed.

Steps have priority. Caches get the remaining memory, up to the size of all cases. To make room for caches,
the number of windows at a time is reduced until caches have half of what a step with one window leaves free.
Nothing else in the plan changes for caches, since cases that are not cached can be read again for each
window. Validation processes as many windows at a time as training and needs no gradients, so it takes less
memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsam_app.datasets.cases import Case
from medsam_app.errors import SettingsError
from medsam_app.finetuning.memory_probe import Task, Trial, can_measure, largest, run_probe
from medsam_app.finetuning.plan import WINDOW_MULTIPLES, Plan
from medsam_app.models.table import model_entry
from medsam_app.progress import Progress
from medsam_app.system import format_bytes, free_memory

#: Fraction of the free memory that a run uses by default.
PART = 0.8
#: Smallest side to which windows are reduced.
SMALLEST = 32


@dataclass(frozen=True)
class FittedPlan:
    """A plan that fits into memory.

    Attributes:
        plan: the given plan, possibly changed.
        predicted: predicted peak of one process in bytes, including caches; 0 if it was not measured.
        available: bytes that one process may take.
        caches: bytes for each cache, the argument `memory` of `FinetuneTrainer`.
        notes: sentences on each change and its reason.
    """

    plan: Plan
    predicted: int
    available: int
    caches: int
    notes: tuple[str, ...] = ()


def fit(
    plan: Plan,
    cases: Sequence[Case],
    *,
    memory: int | None = None,
    device: Any = "cpu",
    weights: Path | None = None,
    processes: int = 1,
    fixed: Collection[str] = (),
    progress: Progress | None = None,
) -> FittedPlan:
    """Make a plan fit into memory with as few changes as possible.

    Changes are tried in this order: fewer windows at a time (`micro_batch`; the windows per update stay the
    same), recomputed activations (`checkpointing`), smaller windows, and a frozen encoder (`cached`).

    Args:
        plan: the plan.
        cases: cases to train on.
        memory: bytes for all processes together, on the GPU for a CUDA device; by default most of the free
            memory.
        device: torch device, or its name.
        weights: weights of the base; None for the published ones.
        processes: number of processes that share the run.
        fixed: fields of the plan that must not change.
        progress: called with a description of the current work and the fraction done.

    Raises:
        SettingsError: the plan does not fit even with all changes.
        MedsamError: a case or the base cannot be read.
    """
    device = str(device)
    available = _available(memory, device, processes)
    if not can_measure(device):
        note = "This system does not tell how much memory a process took, so the plan was not tried."
        return _unchanged(plan, cases, available, note)
    budget = _Budget(
        available, math.ceil(plan.batch / processes), plan, fixed, on_device=device.startswith("cuda")
    )
    for number, (changed, notes) in enumerate(_variants(plan, fixed, budget)):
        sizes = _sizes(cases, changed)

        def report(what: str, number: int = number, changed: Plan = changed) -> None:
            if progress is not None:
                progress(
                    f"Trying a step ({_describe(changed)}){what}", 1 - 0.7**number * (0.8 if what else 1.0)
                )

        report("")
        task = Task(changed, largest(cases, sizes), device, weights, budget.fewest, budget.most, available)
        budget.last = run_probe(task, lambda what: report(f": {what}"))
        fitted = budget.fitted(changed, budget.last, sum(sizes), len(cases), notes)
        if fitted is not None:
            return fitted
        budget.least = min(budget.least, budget.needed(budget.last, budget.fewest))
        if budget.last.ready > available:  # too much before any step: no further change helps
            break
    raise _too_little(plan, budget.least, available, processes, fixed, device)


def unmeasured(
    plan: Plan, cases: Sequence[Case], *, memory: int | None = None, device: Any = "cpu", processes: int = 1
) -> FittedPlan:
    """Return the unchanged plan without measuring whether it fits; arguments as for `fit`.

    Raises:
        MedsamError: a case cannot be read.
    """
    available = _available(memory, str(device), processes)
    return _unchanged(
        plan, cases, available, "The plan was not tried: whether it fits into memory is not known."
    )


def _unchanged(plan: Plan, cases: Sequence[Case], available: int, note: str) -> FittedPlan:
    """Return the unchanged plan, with caches of at most a quarter of the memory."""
    return FittedPlan(plan, 0, available, min(sum(_sizes(cases, plan)), available // 4), (note,))


class _Budget:
    """Memory of one process, and the plans that fit into it.

    Attributes:
        available: bytes that the process may take.
        share: windows per update in one process.
        fewest, most: range of windows at a time.
        last: last measurement.
        least: least bytes needed by a plan that did not fit.
    """

    def __init__(
        self, available: int, share: int, plan: Plan, fixed: Collection[str], *, on_device: bool
    ) -> None:
        self.available, self.share, self.on_device = available, share, on_device
        self.most = min(plan.micro_batch or share, share)
        self.fewest = self.most if "micro_batch" in fixed else 1
        self.last: Trial | None = None
        self.least = math.inf

    def needed(self, trial: Trial, windows: int) -> float:
        """Return the peak bytes with a number of windows at a time, without caches.

        Values between measurements are interpolated linearly. More windows than measured need infinite
        memory.
        """
        measured = sorted(trial.steps)
        if trial.ready > self.available:
            return trial.ready
        if not measured or windows > measured[-1]:
            return math.inf
        step = float(np.interp(windows, measured, [trial.steps[n] for n in measured]))
        # With several parts per update, the accumulated gradients stay allocated during the next part.
        return max(trial.ready, step + (trial.gradients if windows < self.share else 0))

    def fitted(
        self, plan: Plan, trial: Trial, cases: int, count: int, notes: tuple[str, ...]
    ) -> FittedPlan | None:
        """Return the plan with as many windows at a time as fit; None if the fewest do not fit.

        Args:
            plan: the plan.
            trial: its measured memory.
            cases: cached size of all cases in bytes.
            count: number of cases.
            notes: notes on earlier changes.
        """
        from medsam_app.finetuning.training_windows import VIEWS

        free = self.available - self.needed(trial, self.fewest)
        if free < 0:
            return None
        cases = 0 if self.on_device else cases
        embeddings = trial.embedding * count * VIEWS
        limit = self.available - (min(cases + embeddings, free / 2) if self.fewest == 1 else 0)
        windows = self.most
        while windows > self.fewest and self.needed(trial, windows) > limit:
            # Even parts: 8 windows as 4 and 4, not as 5 and 3.
            parts = math.ceil(self.share / windows) + 1
            windows = max(self.fewest, min(windows - 1, math.ceil(self.share / parts)))
        needed = int(self.needed(trial, windows))
        if windows < self.most:
            why = f"{self.most} at a time do not fit into {format_bytes(self.available)} beside cached cases"
            notes = (f"{windows} of {self.share} windows are played at a time (micro_batch): {why}.", *notes)
            plan = plan.model_copy(update={"micro_batch": windows})
        caches, filled = _divide(self.available - needed, cases, embeddings)
        if self.on_device:
            host = (free_memory() or 0) // 2
            caches = min(caches, host) if embeddings else host
        if filled < cases + embeddings:
            total, part = format_bytes(cases + embeddings), format_bytes(filled)
            what = "Cases and embeddings" if embeddings else "Cases"
            remainder = "the others are made anew each time"
            notes = (*notes, f"{what} take {total}, of which {part} are kept in memory; {remainder}.")
        return FittedPlan(plan, needed + filled, self.available, caches, notes)


def _divide(free: int, cases: int, embeddings: int) -> tuple[int, int]:
    """Divide free memory between two caches; return the limit of each and their total size."""
    if cases + embeddings <= free:
        return max(cases, embeddings), cases + embeddings
    smaller = min(cases, embeddings)
    limit = free - smaller if smaller < free / 2 else free // 2
    return limit, min(cases, limit) + min(embeddings, limit)


def _variants(plan: Plan, fixed: Collection[str], budget: _Budget) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """Yield the plan and plans that need less and less memory, each with notes on its changes."""
    yield plan, ()
    notes: tuple[str, ...] = ()
    if not plan.checkpointing and "checkpointing" not in fixed:
        plan = plan.model_copy(update={"checkpointing": True})
        notes = (
            "Activations are computed again instead of kept (checkpointing), which costs about a third more "
            "time.",
        )
        yield plan, notes
    yield from _smaller(plan, fixed, budget, notes)
    if not plan.cached and "cached" not in fixed and (plan.decoder or plan.automatic):
        plan = plan.model_copy(update={"cached": True})
        notes += (
            "The encoder is not taught, and its embeddings are kept (cached): only the decoder and learned "
            "prompts are, which learns less.",
        )
        yield plan, notes
        yield from _smaller(plan, fixed, budget, notes)


def _smaller(
    plan: Plan, fixed: Collection[str], budget: _Budget, notes: tuple[str, ...]
) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """Yield plans with smaller windows, skipping those that cannot fit according to the last measurement."""
    if "window" in fixed:
        return
    multiple = WINDOW_MULTIPLES[model_entry(plan.base).family]
    trial = budget.last
    for most in range(max(plan.window) - multiple, SMALLEST - 1, -multiple):
        x, y, z = (min(side, most) for side in plan.window)
        if trial is not None and trial.steps and most - multiple >= SMALLEST:
            activations = (
                (budget.needed(trial, budget.fewest) - trial.ready) * x * y * z / math.prod(plan.window)
            )
            if trial.ready + activations > budget.available:
                continue
        before, after = (" x ".join(map(str, sides)) for sides in (plan.window, (x, y, z)))
        note = f"Windows are {after} voxels instead of {before}, so they show less around an object."
        yield plan.model_copy(update={"window": (x, y, z)}), (*notes, note)


def _sizes(cases: Sequence[Case], plan: Plan) -> list[int]:
    """Return the cached size of each case in bytes."""
    from medsam_app.finetuning.training_windows import bytes_on_grid

    return [bytes_on_grid(case, plan) for case in cases]


def _available(memory: int | None, device: str, processes: int) -> int:
    """Return the bytes that one process may take."""
    if memory is not None:
        return memory // processes
    if device.startswith("cuda"):
        import torch

        return int(PART * torch.cuda.mem_get_info(device)[0])  # each process has its own GPU
    return int(PART * (free_memory() or 8e9)) // processes


def _describe(plan: Plan) -> str:
    """Return a description of a plan for the progress bar."""
    parts = [f"{plan.base}, {' x '.join(map(str, plan.window))} voxels"]
    parts += [name for name in ("checkpointing", "cached") if getattr(plan, name)]
    return ", ".join(parts)


def _too_little(
    plan: Plan, fewest: float, available: int, processes: int, fixed: Collection[str], device: str
) -> SettingsError:
    requested = " and ".join(sorted(set(fixed) & {"micro_batch", "checkpointing", "window", "cached"}))
    takes = f"{format_bytes(fewest)} at least" if math.isfinite(fewest) else "more than the machine gave it"
    shared = f" for each of {processes} processes" if processes > 1 else ""
    advice = "give --memory more, close other programs or take a smaller --base"
    if processes > 1:
        advice += ", or start fewer processes"
    if requested:
        advice += f", or leave {requested} to the program"
    where = "on the device" if device.startswith("cuda") else "of memory"
    return SettingsError(
        f"Teaching {plan.base} does not fit: a step takes {takes}, and there are {format_bytes(available)} "
        f"{where}{shared}; {advice}."
    )
