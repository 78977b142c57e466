"""Whether a finetuning run fits into memory, and how it is made to.

found = fit(plan, cases, memory=6_000_000_000, device="cpu")
Teacher(found.plan, ..., memory=found.caches)

Real steps are measured in a process of their own (`medsam_app.trial`), with one and with two windows at a
time; more windows follow along the line through both. Three things take memory in each process of a run:

- what is there before any window: Python and torch with their libraries, the base, the adapter, its running
  average and the optimizer's two. It is measured, since it is where the line begins;
- windows: activations of the encoder and of every round, as many times as there are windows at a time. They
  are measured;
- caches: cases on the plan's grid, and embeddings where the plan wants them. Their bytes are known and added.

Steps come first; caches get what steps leave, and no more than all cases take. For their sake alone windows
are played in smaller parts, so that up to half of what a step with one window leaves is theirs, but nothing
else is given up: a case that is not cached is read again each time. The windows that the run is measured with
are played as many at a time as those that are taught, and need no gradient, so they take less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_app.cases import Case
from medsam_app.errors import SettingsError
from medsam_app.memory import format_bytes, free_memory
from medsam_app.models.table import model_entry
from medsam_app.plan import TAUGHT, Plan
from medsam_app.trial import Task, Trial, can_measure, largest, try_out

#: Of what is free, the part that a run takes where nobody says how much.
PART = 0.8
#: Windows do not become smaller than this.
SMALLEST = 32
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Fitted:
    """A plan that fits.

    Attributes:
        plan: as it was, or changed.
        predicted: most bytes that one process will take, caches included; 0 where the system cannot measure.
        available: bytes that one process may take.
        caches: of them, for the `memory` of `Teacher`.
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
) -> Fitted:
    """Make a plan fit into memory: each of these only where those before it are not enough.

    Fewer windows at a time (`micro_batch`; an update is of as many as before), activations that are computed
    again (`checkpointing`), smaller windows, and last `cached`: an encoder that is not taught.

    Args:
        cases: taught on.
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
    sizes = _sizes(cases, plan)
    if not can_measure(device):
        note = "This system does not tell how much memory a process took, so the plan was not tried."
        return Fitted(plan, 0, available, min(sum(sizes), available // 4), (note,))
    fewest = math.inf
    fit = _Fit(plan, available, math.ceil(plan.batch / processes), kept, device)
    for number, (changed, more) in enumerate(_variants(plan, kept, fit)):
        sizes = _sizes(cases, changed)

        def told(what: str, number: int = number, changed: Plan = changed) -> None:
            if progress is not None:
                progress(f"Trying a step ({_told(changed)})", min(0.95, 0.3 * number + 0.1 * bool(what)))

        told("")
        task = Task(changed, largest(cases, sizes), device, weights, fit.tried)
        trial = try_out(task, told)
        fit.last = trial
        found = fit.fitted(changed, trial, sum(sizes), len(cases), more)
        if found is not None:
            return found
        fewest = min(fewest, fit.needed(trial, fit.fewest) if trial.steps.get(fit.fewest) else math.inf)
    raise _too_little(plan, fewest, available, processes, kept, device)


class _Fit:
    """What a trial says of plans: how much they need and whether they fit.

    Attributes:
        share: windows of an update in one process.
        fewest: windows at a time, at least.
        tried: numbers of windows at a time that are measured.
        last: the trial before.
    """

    def __init__(self, plan: Plan, available: int, share: int, kept: Collection[str], device: str) -> None:
        self.plan, self.available, self.share = plan, available, share
        self.wanted = min(plan.micro_batch or share, share)
        self.fewest = self.wanted if "micro_batch" in kept else 1
        self.tried = [1] if self.wanted == 1 else [1, 2]
        self.on_device = device.startswith("cuda")
        self.last: Trial | None = None

    def line(self, trial: Trial) -> tuple[float, float]:
        """Bytes of a step without any window, and of each window; of a trial that was ended, as if the second
        window took all that there is."""
        one = trial.steps.get(1, math.inf)
        each = trial.steps.get(2, math.inf) - one if self.wanted > 1 else 0.0
        return one - each, max(each, 0.0)

    def needed(self, trial: Trial, windows: int) -> float:
        """Most bytes with so many windows at a time, without caches."""
        if 1 not in trial.steps:
            return math.inf
        step = float(trial.steps[1])
        if windows > 1:
            step = math.inf if 2 not in trial.steps else step + (windows - 1) * self.line(trial)[1]
        # Gradients of the parts before are there while the next is played.
        return max(trial.ready, step + (trial.gradients if windows < self.share else 0))

    def fitted(
        self, plan: Plan, trial: Trial, cases: int, count: int, notes: tuple[str, ...]
    ) -> Fitted | None:
        """The plan with as many windows at a time as fit; None if not even the fewest do."""
        from medsam_app.teaching_data import VIEWS

        embeddings = trial.embedding * count * VIEWS
        left = self.available - self.needed(trial, self.fewest)
        if left < 0:
            return None
        beside = 0 if self.on_device else cases
        reserve = 0.0 if self.fewest > 1 else min(beside + embeddings, left / 2)
        windows = self.wanted
        while windows > self.fewest and self.needed(trial, windows) > self.available - reserve:
            # As even as can be: of 8 windows 4 and 4, not 5 and 3.
            parts = math.ceil(self.share / windows) + 1
            windows = max(self.fewest, min(windows - 1, math.ceil(self.share / parts)))
        needed = self.needed(trial, windows)
        if windows < self.wanted:
            whole = self.needed(trial, self.wanted)
            takes = (
                f"would take {format_bytes(whole)}" if math.isfinite(whole) else "would take more than that"
            )
            notes = (
                f"{windows} of the {self.share} windows of an update are played at a time (micro_batch): "
                f"{takes} the {format_bytes(self.available)} that there are, and cached cases come on top. "
                "What is learned is the same.",
                *notes,
            )
            plan = plan.model_copy(update={"micro_batch": windows})
        caches, filled = _shared_out(int(self.available - needed), beside, embeddings)
        if self.on_device:
            caches = min(caches, (free_memory() or 0) // 2) if embeddings else (free_memory() or 0) // 2
        if beside and filled < beside + embeddings:
            notes = (
                *notes,
                f"Cases and embeddings take {format_bytes(beside + embeddings)}, of which "
                f"{format_bytes(filled)} are kept in memory; the others are made anew each time.",
            )
        return Fitted(plan, int(needed) + filled, self.available, caches, notes)


def _shared_out(left: int, cases: int, embeddings: int) -> tuple[int, int]:
    """The bound of each of two caches that may take so much together, and what they will take."""
    if cases + embeddings <= left:
        return max(cases, embeddings), cases + embeddings
    smaller = min(cases, embeddings)
    bound = left - smaller if smaller < left / 2 else left // 2
    return bound, min(cases, bound) + min(embeddings, bound)


def _variants(plan: Plan, kept: Collection[str], fit: _Fit) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """The plan, and ever smaller ones, with what to say of each."""
    yield plan, ()
    notes: tuple[str, ...] = ()
    if not plan.checkpointing and "checkpointing" not in kept:
        plan = plan.model_copy(update={"checkpointing": True})
        notes = (
            "Activations are computed again instead of kept (checkpointing), which costs about a third more "
            "time.",
        )
        yield plan, notes
    yield from _smaller(plan, kept, fit, notes)
    if not plan.cached and "cached" not in kept and (plan.decoder or plan.automatic):
        plan = plan.model_copy(update={"cached": True})
        notes += (
            "The encoder is not taught, and its embeddings are kept (cached): only the decoder and learned "
            "prompts are, which learns less.",
        )
        yield plan, notes
        yield from _smaller(plan, kept, fit, notes)


def _smaller(
    plan: Plan, kept: Collection[str], fit: _Fit, notes: tuple[str, ...]
) -> Iterator[tuple[Plan, tuple[str, ...]]]:
    """The plan with smaller windows; those that are certain not to fit by the last trial are passed over."""
    if "window" in kept:
        return
    multiple = TAUGHT[model_entry(plan.base).family]
    first = fit.last
    for most in range(max(plan.window) - multiple, SMALLEST - 1, -multiple):
        x, y, z = (min(side, max(most, min(side, SMALLEST))) for side in plan.window)
        part = x * y * z / math.prod(plan.window)
        last = most - multiple < SMALLEST
        if not last and first is not None and {1, 2} <= set(first.steps):
            base, each = fit.line(first)
            if base + fit.fewest * each * part > fit.available:
                continue
        was, now = (" x ".join(map(str, sides)) for sides in (plan.window, (x, y, z)))
        note = f"Windows are {now} voxels instead of {was}, so they show less around an object."
        yield plan.model_copy(update={"window": (x, y, z)}), (*notes, note)


def _sizes(cases: Sequence[Case], plan: Plan) -> list[int]:
    """What each case takes once it is cached."""
    from medsam_app.teaching_data import bytes_on_grid

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
    """What a trial is of."""
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
