"""Training loop: timed steps, validations and saved states, until done or stopped."""

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

#: Files of a run folder that get a line for each step, and for each measurement.
LOG, MEASUREMENTS = "log.jsonl", "validation.jsonl"


#: Asked between steps; True if the run should stop.
Stopped = Callable[[], bool]
#: Mean Dice after each round by kind of window; None where it was stopped.
Measure = Callable[[Stopped], dict[str, list[float]] | None]


class Watcher:
    """Callbacks of a training run; the base class does nothing."""

    def trained(self, row: dict[str, Any], done: float) -> None:
        """A step was made: its line in the log, and which part of the run is behind."""

    def measuring(self) -> None:
        """The averaged weights are about to be measured."""

    def measured(self, row: dict[str, Any]) -> None:
        """They were: step, seconds, and by kind of window the mean Dice after each round."""


class RunLog(Watcher):
    """Writes the files of a run folder.

    Args:
        out: the folder.
        step: where the run resumes; lines beyond it, of a run that was cut off, are taken back.

    Raises:
        SaveError: a file cannot be written.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.out = out
        for name in (LOG, MEASUREMENTS):
            self._take_back(name, step)

    def trained(self, row: dict[str, Any], done: float) -> None:
        """Record a step."""
        self._append(LOG, row)

    def measured(self, row: dict[str, Any]) -> None:
        """Record a validation."""
        self._append(MEASUREMENTS, row)

    def _take_back(self, name: str, step: int) -> None:
        """Drop the lines that will be written again; a new run has none."""
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
    """The step of a line of JSON; infinity where it was cut short."""
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

    Only steps count as training time. The first process measures and saves, and the others wait for it.

    Args:
        trainer: new, or resumed.
        measure: what the first process does before the first step, when it is due, and at the end.
        watchers: of the first process.
        stopped: asked between steps and while measuring; any process may say yes for all.

    Returns:
        whether the recipe is done.

    Raises:
        SaveError: the run folder cannot be written to.
    """
    settings, saved = trainer.settings, time.monotonic()
    if trainer.step == 0:
        _measure(trainer, measure, watchers, stopped)
    while not _agreed(trainer, stopped()) and trainer.done() < 1:
        before, begin = settings.validations(trainer.step, trainer.seconds), time.monotonic()
        row = trainer.train_step()
        trainer.seconds += time.monotonic() - begin
        for watcher in watchers:
            watcher.trained(row | {"seconds": round(trainer.seconds, 1)}, trainer.done())
        if time.monotonic() - saved > settings.save_minutes * 60:
            trainer.save()
            saved = time.monotonic()
        if settings.validations(trainer.step, trainer.seconds) > before or trainer.done() == 1:
            _measure(trainer, measure, watchers, stopped)
    trainer.save()
    return trainer.done() == 1


def _agreed(trainer: Trainer[Any], stop: bool) -> bool:
    """Return whether any process wants to stop; all adopt the clock of the first."""
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
    found = measure(stopped)
    if found is None:
        return
    row: dict[str, Any] = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
    row |= {kind: [round(value, 4) for value in dice] for kind, dice in found.items()}
    for watcher in watchers:
        watcher.measured(row)
