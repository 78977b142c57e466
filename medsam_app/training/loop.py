"""Training loop: timed steps, validations and saved states."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from medsam_app.atomic import write_whole
from medsam_app.errors import SaveError
from medsam_app.training.trainer import Trainer

#: Files of a run folder with one line per step, and one line per validation.
LOG, MEASUREMENTS = "log.jsonl", "validation.jsonl"


#: Function that is called between steps and returns True if the run should stop.
Stopped = Callable[[], bool]
#: Function that returns the mean Dice after each round by kind of window, or None if it was stopped.
Measure = Callable[[Stopped], dict[str, list[float]] | None]


class Watcher:
    """Callbacks of a training run; the base class does nothing."""

    def trained(self, row: dict[str, Any], done: float) -> None:
        """Handle the end of a step.

        Args:
            row: the step's row of the log.
            done: fraction of the run that is done, from 0 to 1.
        """

    def measuring(self) -> None:
        """Handle the start of a validation."""

    def measured(self, row: dict[str, Any]) -> None:
        """Handle the end of a validation.

        Args:
            row: step, seconds, and for each kind of window the mean Dice after each round.
        """


class RunLog(Watcher):
    """Log files of a run folder.

    Args:
        out: the folder.
        step: step at which the run resumes; later lines of an interrupted run are removed.

    Raises:
        SaveError: a file cannot be written.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.out = out
        for name in (LOG, MEASUREMENTS):
            self._truncate(name, step)

    def trained(self, row: dict[str, Any], done: float) -> None:
        """Record a step."""
        self._append(LOG, row)

    def measured(self, row: dict[str, Any]) -> None:
        """Record a validation."""
        self._append(MEASUREMENTS, row)

    def _truncate(self, name: str, step: int) -> None:
        """Remove the lines after a step, which will be written again; a new run starts with step 0."""
        file = self.out / name
        try:
            lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
            kept = [line for line in lines if step and _step_of(line) <= step]
            if len(kept) < len(lines):
                write_whole(file, "".join(kept))
        except OSError as error:
            raise SaveError(f"{file} cannot be written ({error.strerror}).") from None

    def _append(self, name: str, row: dict[str, Any]) -> None:
        try:
            with (self.out / name).open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise SaveError(f"{self.out / name} cannot be written ({error.strerror}).") from None


def _step_of(line: str) -> float:
    """Return the step of a line of JSON; infinity if the line is incomplete."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf


def run(
    trainer: Trainer[Any],
    measure: Measure | None = None,
    *,
    watchers: Sequence[Watcher] = (),
    stopped: Stopped = lambda: False,
) -> bool:
    """Train until the recipe is done or a stop is requested, and save.

    Only steps count as training time. The first process validates and saves; the others wait for it.

    Args:
        trainer: new or resumed trainer.
        measure: validation of the first process, run before the first step, when due, and at the end.
        watchers: callbacks of the first process.
        stopped: checked between steps and during validation; True in any process stops all of them.

    Returns:
        Whether the recipe is done.

    Raises:
        SaveError: the run folder cannot be written to.
    """
    settings, last_save = trainer.settings, time.monotonic()
    if trainer.step == 0:
        _measure(trainer, measure, watchers, stopped)
    while not _should_stop(trainer, stopped()) and trainer.done() < 1:
        validations_before, start = settings.validations(trainer.step, trainer.seconds), time.monotonic()
        row = trainer.train_step()
        trainer.seconds += time.monotonic() - start
        for watcher in watchers:
            watcher.trained(row | {"seconds": round(trainer.seconds, 1)}, trainer.done())
        if time.monotonic() - last_save > settings.save_minutes * 60:
            trainer.save()
            last_save = time.monotonic()
        if settings.validations(trainer.step, trainer.seconds) > validations_before or trainer.done() == 1:
            _measure(trainer, measure, watchers, stopped)
    trainer.save()
    return trainer.done() == 1


def _should_stop(trainer: Trainer[Any], stop: bool) -> bool:
    """Return whether any process should stop; set the clock of every process to that of the first."""
    if trainer.world == 1:
        return stop
    clock = 0.0 if trainer.rank else trainer.seconds
    shared = torch.tensor([clock, stop], dtype=torch.float64, device=trainer.device)
    dist.all_reduce(shared)
    trainer.seconds = float(shared[0])
    return bool(shared[1] > 0)


def _measure(
    trainer: Trainer[Any], measure: Measure | None, watchers: Sequence[Watcher], stopped: Stopped
) -> None:
    if measure is None:
        return
    for watcher in watchers:
        watcher.measuring()
    scores = measure(stopped)
    if scores is None:
        return
    row: dict[str, Any] = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
    row |= {kind: [round(value, 4) for value in dice] for kind, dice in scores.items()}
    for watcher in watchers:
        watcher.measured(row)
