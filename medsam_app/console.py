"""Terminal output of commands (lines, tables, progress bars), and checks of outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box as borders
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from medsam_app.errors import SaveError

#: Width of tables in a log, where lines should not wrap.
_LOG_WIDTH = 160
#: Seconds between two lines of progress in a log.
_LOG_SECONDS = 30


def table_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for a log."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def titled_table(title: str) -> Table:
    """Return an empty table with a title."""
    return Table(title=title, title_justify="left", box=borders.SIMPLE_HEAD, highlight=False)


@contextmanager
def progress_bar(first: str) -> Iterator[tuple[Callable[[str, float], None], Callable[[str], None]]]:
    """Show progress: a bar in a terminal, or an occasional line in a log.

    Args:
        first: description shown before the first report of progress.

    Yields:
        A callback for a sentence and the fraction done, and a callback that prints a permanent line.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        last_time = -math.inf

        def line(what: str, done: float) -> None:
            nonlocal last_time
            if time.monotonic() - last_time > _LOG_SECONDS:
                last_time = time.monotonic()
                note(f"{100 * done:.0f} %: {what}")

        yield line, note
        return
    columns = (BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    with Progress(*columns, description, console=console, transient=True) as bar:
        task = bar.add_task(first, total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done), console.print


def check_target(target: Path, *, sources: Iterable[Path], overwrite: bool) -> None:
    """Check before the work starts that an output file may be written.

    Args:
        target: the output file.
        sources: files and folders that are read. They, files inside them and other names of the same files
            are never overwritten.
        overwrite: whether any other existing file may be replaced.

    Raises:
        SaveError: the folder does not exist, or the target must not be replaced.
    """
    if not target.parent.is_dir():
        raise SaveError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    if target.is_dir():
        raise SaveError(f"{target} is a folder; give the name of a file.")
    if target.exists() and any(_overwrites(target, source) for source in sources):
        raise SaveError(f"{target} is what is read here and is not overwritten; give another name.")
    if target.exists() and not overwrite:
        raise SaveError(f"{target} exists already; give another name, or --overwrite to replace it.")


def _overwrites(target: Path, source: Path) -> bool:
    """Return whether an existing target is the source, a hard link to it, or inside it."""
    same = source.exists() and target.samefile(source)
    return same or target.resolve().is_relative_to(source.resolve())


def say(text: str) -> None:
    """Print a line of the result to stdout."""
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)


def note(text: str) -> None:
    """Print a line about the work to stderr, apart from the result."""
    Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)


@contextmanager
def step(text: str, *, quiet: bool = False) -> Iterator[Callable[[str, float], None]]:
    """Show a step in progress: a spinner in a terminal, or a line in a log.

    Args:
        text: description of the step.
        quiet: whether to show nothing, as in all but the first of several processes.

    Yields:
        Callback for a description and the fraction of the step that is done.
    """
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    if quiet or not console.is_terminal:
        if not quiet:
            note(f"{text} ...")
        yield lambda what, done: None
        return
    with console.status(text) as status:
        yield lambda what, done: status.update(f"{text}: {what} ({100 * done:.0f} %)")
