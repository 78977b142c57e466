"""Memory check of a fine-tuning run, which adapts the plan to the memory.

found = fit(plan, cases, memory=6_000_000_000, device="cpu")
FinetuneTrainer(found.plan, ..., memory=found.caches)

Real steps are measured in a process of their own (`medsam_app.finetuning.memory_probe`): with one window
at a time, and with as many as there are to be, or as fit. So what is chosen has been measured; a line
through one and two windows would miss by a tenth, since the libraries treat one window otherwise than
several. Three things take memory in each process of a run:

- what is there before any window: Python and torch with their libraries, the base, the adapter, its running
  average and the optimizer's two, which are measured with
- windows: activations of the encoder and of every round, as many times as there are windows at a time, and
  what the allocator keeps of memory that was given back;
- caches: cases on the plan's grid, and embeddings where the plan wants them. Their bytes are known and added.

Steps come first; caches get what steps leave, and no more than all cases take. For their sake alone windows
are played in smaller parts, so that up to half of what a step with one window leaves is theirs, but nothing
else is given up: a case that is not cached is read again each time. The windows that the run is measured with
are played as many at a time as those that are trained, and need no gradient, so they take less.
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
from medsam_app.finetuning.memory_probe import Task, Trial, can_measure, largest, try_out
from medsam_app.finetuning.plan import TAUGHT, Plan
from medsam_app.models.table import model_entry
from medsam_app.progress import Progress
from medsam_app.system import format_bytes, free_memory

#: Fraction of the free memory that a run uses by default.
PART = 0.8
#: Windows do not become smaller than this.
SMALLEST = 32


@dataclass(frozen=True)
class FittedPlan:
    """A plan that fits.

    Attributes:
        plan: as it was, or changed.
        predicted: most bytes that one process will take, caches included; 0 where the system cannot measure.
        available: bytes that one process may take.
        caches: of them, for the `memory` of `FinetuneTrainer`.
        notes: sentences that say what was changed, and why.
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
    kept: Collection[str] = (),
    progress: Progress | None = None,
) -> FittedPlan:
    """Make a plan fit into memory: each of these only where those before it are not enough.

    Fewer windows at a time (`micro_batch`; an update is of as many as before), activations that are computed
    again (`checkpointing`), smaller windows, and last `cached`: an encoder that is not trained.

    Args:
        cases: trained on.
        memory: bytes of all processes together, of the device where that is CUDA; by default most of what is
            free now.
        device: of torch.
        weights: of the base, instead of the published ones.
        processes: that share the run.
        kept: fields of the plan that stay as they are.
        progress: called with what is being done and a fraction.

    Raises:
        SettingsError: nothing is enough.
        MedsamError: a case or the base cannot be read.
    """
    device = str(device)
    available = _available(memory, device, processes)
    if not can_measure(device):
        note = "This system does not tell how much memory a process took, so the plan was not tried."
        return _unchanged(plan, cases, available, note)
    room = _Room(
        available, math.ceil(plan.batch / processes), plan, kept, on_device=device.startswith("cuda")
    )
    for number, (changed, notes) in enumerate(_variants(plan, kept, room)):
        sizes = _sizes(cases, changed)

        def told(what: str, number: int = number, changed: Plan = changed) -> None:
            if progress is not None:
                progress(f"Trying a step ({_told(changed)}){what}", 1 - 0.7**number * (0.8 if what else 1.0))

        told("")
        task = Task(changed, largest(cases, sizes), device, weights, room.fewest, room.most, available)
        room.last = try_out(task, lambda what: told(f": {what}"))
        found = room.fitted(changed, room.last, sum(sizes), len(cases), notes)
        if found is not None:
            return found
        room.least = min(room.least, room.needed(room.last, room.fewest))
        if room.last.ready > available:  # before any step: nothing that is left to change helps
            break
    raise _too_little(plan, room.least, available, processes, kept, device)


def untried(
    plan: Plan, cases: Sequence[Case], *, memory: int | None = None, device: Any = "cpu", processes: int = 1
) -> FittedPlan:
    """Return the plan as it is, without trying whether it fits; arguments as for `fit`.

    Raises:
        MedsamError: a case cannot be read.
    """
    available = _available(memory, str(device), processes)
    return _unchanged(
        plan, cases, available, "The plan was not tried: whether it fits into memory is not known."
    )


def _unchanged(plan: Plan, cases: Sequence[Case], available: int, note: str) -> FittedPlan:
    """The plan as it is, with caches that take at most a quarter of the memory."""
    return FittedPlan(plan, 0, available, min(sum(_sizes(cases, plan)), available // 4), (note,))


class _Room:
    """Memory of one process, and the plans that fit into it.

    Attributes:
        share: windows of an update in one process.
        fewest, most: windows at a time.
        last: the trial before.
        least: bytes that a plan needed that did not fit.
    """

    def __init__(
        self, available: int, share: int, plan: Plan, kept: Collection[str], *, on_device: bool
    ) -> None:
        self.available, self.share, self.on_device = available, share, on_device
        self.most = min(plan.micro_batch or share, share)
        self.fewest = self.most if "micro_batch" in kept else 1
        self.last: Trial | None = None
        self.least = math.inf

    def needed(self, trial: Trial, windows: int) -> float:
        """Return the peak bytes with a number of windows at a time, without caches.

        Numbers that were not measured are interpolated or extrapolated linearly.
        """
        tried = sorted(trial.steps)
        if trial.ready > self.available:
            return trial.ready
        if not tried or windows > tried[-1]:
            return math.inf
        step = float(np.interp(windows, tried, [trial.steps[n] for n in tried]))
        # Gradients of the parts before are there while the next is played.
        return max(trial.ready, step + (trial.gradients if windows < self.share else 0))

    def fitted(
        self, plan: Plan, trial: Trial, cases: int, count: int, notes: tuple[str, ...]
    ) -> FittedPlan | None:
        """The plan with as many windows at a time as fit; None if not even the fewest do.

        Args:
            cases: bytes of all of them, cached.
            count: how many there are.
            notes: what was changed before.
        """
        from medsam_app.finetuning.training_windows import VIEWS

        left = self.available - self.needed(trial, self.fewest)
        if left < 0:
            return None
        cases = 0 if self.on_device else cases
        embeddings = trial.embedding * count * VIEWS
        room = self.available - (min(cases + embeddings, left / 2) if self.fewest == 1 else 0)
        windows = self.most
        while windows > self.fewest and self.needed(trial, windows) > room:
            # As even as can be: of 8 windows 4 and 4, not 5 and 3.
            parts = math.ceil(self.share / windows) + 1
            windows = max(self.fewest, min(windows - 1, math.ceil(self.share / parts)))
        needed = int(self.needed(trial, windows))
        if windows < self.most:
            why = f"{self.most} at a time do not fit into {format_bytes(self.available)} beside cached cases"
            notes = (f"{windows} of {self.share} windows are played at a time (micro_batch): {why}.", *notes)
            plan = plan.model_copy(update={"micro_batch": windows})
        caches, filled = _shared_out(self.available - needed, cases, embeddings)
        if self.on_device:
            host = (free_memory() or 0) // 2
            caches = min(caches, host) if embeddings else host
        if filled < cases + embeddings:
            whole, part = format_bytes(cases + embeddings), format_bytes(filled)
            what = "Cases and embeddings" if embeddings else "Cases"
            rest = "the others are made anew each time"
            notes = (*notes, f"{what} take {whole}, of which {part} are kept in memory; {rest}.")
        return FittedPlan(plan, needed + filled, self.available, caches, notes)


def _shared_out(left: int, cases: int, embeddings: int) -> tuple[int, int]:
    """Return the bound and the size of each of two caches that share an amount of memory."""
    if cases + embeddings <= left:
        return max(cases, embeddings), cases + embeddings
    smaller = min(cases, embeddings)
    bound = left - smaller if smaller < left / 2 else left // 2
    return bound, min(cases, bound) + min(embeddings, bound)


def _variants(plan: Plan, kept: Collection[str], room: _Room) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """Yield the plan and ever smaller ones, each with a note."""
    yield plan, ()
    notes: tuple[str, ...] = ()
    if not plan.checkpointing and "checkpointing" not in kept:
        plan = plan.model_copy(update={"checkpointing": True})
        notes = (
            "Activations are computed again instead of kept (checkpointing), which costs about a third more "
            "time.",
        )
        yield plan, notes
    yield from _smaller(plan, kept, room, notes)
    if not plan.cached and "cached" not in kept and (plan.decoder or plan.automatic):
        plan = plan.model_copy(update={"cached": True})
        notes += (
            "The encoder is not taught, and its embeddings are kept (cached): only the decoder and learned "
            "prompts are, which learns less.",
        )
        yield plan, notes
        yield from _smaller(plan, kept, room, notes)


def _smaller(
    plan: Plan, kept: Collection[str], room: _Room, notes: tuple[str, ...]
) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """Yield plans with smaller windows, skipping those that cannot fit by the last trial."""
    if "window" in kept:
        return
    multiple = TAUGHT[model_entry(plan.base).family]
    whole = room.last
    for most in range(max(plan.window) - multiple, SMALLEST - 1, -multiple):
        x, y, z = (min(side, most) for side in plan.window)
        if whole is not None and whole.steps and most - multiple >= SMALLEST:
            each = (room.needed(whole, room.fewest) - whole.ready) * x * y * z / math.prod(plan.window)
            if whole.ready + each > room.available:
                continue
        was, now = (" x ".join(map(str, sides)) for sides in (plan.window, (x, y, z)))
        note = f"Windows are {now} voxels instead of {was}, so they show less around an object."
        yield plan.model_copy(update={"window": (x, y, z)}), (*notes, note)


def _sizes(cases: Sequence[Case], plan: Plan) -> list[int]:
    """Return the cached size of each case in bytes."""
    from medsam_app.finetuning.training_windows import bytes_on_grid

    return [bytes_on_grid(case, plan) for case in cases]


def _available(memory: int | None, device: str, processes: int) -> int:
    """Bytes that one process may take."""
    if memory is not None:
        return memory // processes
    if device.startswith("cuda"):
        import torch

        return int(PART * torch.cuda.mem_get_info(device)[0])  # each process has a device of its own
    return int(PART * (free_memory() or 8e9)) // processes


def _told(plan: Plan) -> str:
    """Describe a trial in words."""
    parts = [f"{plan.base}, {' x '.join(map(str, plan.window))} voxels"]
    parts += [name for name in ("checkpointing", "cached") if getattr(plan, name)]
    return ", ".join(parts)


def _too_little(
    plan: Plan, fewest: float, available: int, processes: int, kept: Collection[str], device: str
) -> SettingsError:
    asked = " and ".join(sorted(set(kept) & {"micro_batch", "checkpointing", "window", "cached"}))
    takes = f"{format_bytes(fewest)} at least" if math.isfinite(fewest) else "more than the machine gave it"
    each = f" for each of {processes} processes" if processes > 1 else ""
    do = "give --memory more, close other programs or take a smaller --base"
    if processes > 1:
        do += ", or start fewer processes"
    if asked:
        do += f", or leave {asked} to the program"
    where = "on the device" if device.startswith("cuda") else "of memory"
    return SettingsError(
        f"Teaching {plan.base} does not fit: a step takes {takes}, and there are {format_bytes(available)} "
        f"{where}{each}; {do}."
    )
