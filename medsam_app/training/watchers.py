"""Callbacks of a training run: progress bar, log lines, TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from medsam_app.console import note
from medsam_app.training.loop import Watcher
from medsam_app.training.run_settings import RunSettings

#: Least seconds between two lines of progress in a log.
LOG_SECONDS = 60


class Lines(Watcher):
    """Printed lines of progress, at most one per `LOG_SECONDS`, and one line per validation.

    Args:
        settings: settings of the run, for its length.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.last_line = settings, -math.inf
        self.losses: list[float] = []

    def trained(self, row: dict[str, Any], done: float) -> None:
        """Record a step."""
        self.losses.append(row["loss"])
        if time.monotonic() - self.last_line > LOG_SECONDS or done == 1:
            self.last_line = time.monotonic()
            note(f"{100 * done:.0f} %: {progress_text(self.settings, row, self.losses)}")
            self.losses = []

    def measured(self, row: dict[str, Any]) -> None:
        """Record a validation."""
        note(measured_text(row))


class Bar(Watcher):
    """Progress bar in a terminal, with the validations printed above it."""

    #: Number of steps over which the displayed loss is averaged.
    SMOOTH = 20

    def __init__(self, settings: RunSettings, bar: Progress, task: TaskID) -> None:
        self.settings, self.bar, self.task = settings, bar, task
        self.losses: list[float] = []
        self.text = "first step"

    def trained(self, row: dict[str, Any], done: float) -> None:
        """Record a step."""
        self.losses = [*self.losses, row["loss"]][-self.SMOOTH :]
        self.text = progress_text(self.settings, row, self.losses)
        self.bar.update(self.task, completed=done, description=self.text)

    def measuring(self) -> None:
        """Show that a validation is in progress."""
        self.bar.update(self.task, description="measuring")

    def measured(self, row: dict[str, Any]) -> None:
        """Record a validation."""
        self.bar.console.print(measured_text(row))
        self.bar.update(self.task, description=self.text)


class Board(Watcher):
    """Curves for TensorBoard.

    Args:
        folder: folder of the TensorBoard files.
        step: step at which the run resumes; later points of an interrupted run are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def trained(self, row: dict[str, Any], done: float) -> None:
        """Record a step."""
        self.writer.add_scalar("training/loss", row["loss"], row["step"])
        self.writer.add_scalar("training/learning rate", row["lr"], row["step"])
        self._dice("training", row["dice"], row["step"])

    def measured(self, row: dict[str, Any]) -> None:
        """Record a validation."""
        for kind, dice in kinds(row).items():
            self._dice(kind, dice, row["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file of curves."""
        self.writer.close()

    def _dice(self, kind: str, dice: list[float], step: int) -> None:
        for number, value in enumerate(dice, start=1):
            self.writer.add_scalar(f"{kind}/Dice of round {number}", value, step)


@contextmanager
def on_console(settings: RunSettings, done: float) -> Iterator[Watcher]:
    """Yield a progress bar in a terminal, and printed lines elsewhere.

    Args:
        settings: settings of the run.
        done: fraction of the run that is already done, from 0 to 1.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        yield Lines(settings)
        return
    columns = (BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=console, transient=True) as bar:
        task = bar.add_task("first step", total=1.0)
        bar.update(task, completed=done)
        yield Bar(settings, bar, task)


def progress_text(settings: RunSettings, row: dict[str, Any], losses: list[float]) -> str:
    """Return 'step 12 of 400, loss 0.412', or the time instead of the steps if the length is a time."""
    return f"{settings.progress_text(row['step'], row['seconds'])}, loss {sum(losses) / len(losses):.3f}"


def measured_text(row: dict[str, Any]) -> str:
    """Return 'Step 40, mean Dice by round: synthetic 0.512 0.603, dev 0.487 0.575'."""
    scores = (f"{kind} {' '.join(f'{value:.3f}' for value in dice)}" for kind, dice in kinds(row).items())
    return f"Step {row['step']}, mean Dice by round: {', '.join(scores)}"


def kinds(row: dict[str, Any]) -> dict[str, list[float]]:
    """Return the entries of a row that hold Dice by round, keyed by kind of window."""
    return {key: value for key, value in row.items() if isinstance(value, list)}
