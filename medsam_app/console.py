"""Terminal output of commands: lines, tables, progress bars; checks of output files."""

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

#: Tables have this width in a log, where nothing should be wrapped.
_LOG_WIDTH = 160
#: Between two lines about the work in a log.
_LOG_SECONDS = 30


def table_console() -> Console:
    """Return a console for tables: as wide as the terminal, or wide enough for a log."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    return console


def titled_table(title: str) -> Table:
    """An empty table with a title."""
    return Table(title=title, title_justify="left", box=borders.SIMPLE_HEAD, highlight=False)


@contextmanager
def progress_bar(first: str) -> Iterator[tuple[Callable[[str, float], None], Callable[[str], None]]]:
    """Show how far the work is: a bar in a terminal, now and then a line in a log.

    Args:
        first: description shown before the first report of progress.

    Yields:
        what to call with a sentence and a fraction done, and what to call with a line to keep.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        said = -math.inf

        def line(what: str, done: float) -> None:
            nonlocal said
            if time.monotonic() - said > _LOG_SECONDS:
                said = time.monotonic()
                note(f"{100 * done:.0f} %: {what}")

        yield line, note
        return
    columns = (BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TimeRemainingColumn())
    what_now = TextColumn("{task.description}", markup=False)
    with Progress(*columns, what_now, console=console, transient=True) as bar:
        task = bar.add_task(first, total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done), console.print


def check_target(target: Path, *, sources: Iterable[Path], overwrite: bool) -> None:
    """Refuse an output that could not or should not be written, before the work is done.

    Args:
        sources: files and folders that are read; neither they nor what is in them is ever overwritten,
            nor another name of the same file.
        overwrite: whether another file that exists may be replaced.

    Raises:
        SaveError: says why it is refused.
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
    """A line of the result."""
    Console(highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)


def note(text: str) -> None:
    """A line about the work, apart from the result."""
    Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print(text)


@contextmanager
def step(text: str, *, quiet: bool = False) -> Iterator[Callable[[str, float], None]]:
    """Show a step in progress: a spinner in a terminal, a line in a log.

    Args:
        quiet: whether to show nothing, as in all but the first of several processes.

    Yields:
        Callback for the progress of the step.
    """
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    if quiet or not console.is_terminal:
        if not quiet:
            note(f"{text} ...")
        yield lambda what, done: None
        return
    with console.status(text) as status:
        yield lambda what, done: status.update(f"{text}: {what} ({100 * done:.0f} %)")
