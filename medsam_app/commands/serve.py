"""What the commands of the command line do. Results go to stdout; progress and warnings to stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from medsam_app.adapters.header import header_for
from medsam_app.errors import ModelError, SettingsError, VolumeError
from medsam_app.models.table import model_entry
from medsam_app.session.label_set import read_label_set

if TYPE_CHECKING:  # heavy: imported inside the commands that need them
    from medsam_app.io.volume import Volume


def say(text: str) -> None:
    """A line of the result."""
    Console(highlight=False, markup=False, soft_wrap=True).print(text)


def note(text: str) -> None:
    """A line about the work, apart from the result."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


@contextmanager
def step(text: str) -> Iterator[Any]:
    """Say what is being done: a spinner in a terminal, a line in a log. Yields a `Progress`."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        note(f"{text} ...")
        yield lambda what, done: None
        return
    with console.status(text) as status:
        yield lambda what, done: status.update(f"{text}: {what} ({100 * done:.0f} %)")


def check_model(model: str, weights: Path | None, adapter: Path | None) -> None:
    """What can be told of the wanted model without loading it.

    Raises:
        ModelError: an unknown name, or no file of weights.
        AdapterError: no adapter's file, or one of another model.
    """
    model_entry(model)
    if weights is not None and not weights.exists():
        raise ModelError(f"There is no file of weights '{weights}'; check the path.")
    if adapter is not None:
        header_for(adapter, model)


def serve(
    image: Path | None,
    *,
    host: str,
    port: int,
    roots: Sequence[Path],
    worklist: Path | None,
    model: str,
    weights: Path | None,
    adapter: Path | None,
    device: str,
    auth: Sequence[str],
    auth_file: Path | None,
    session_memory: float | None,
    open_browser: bool,
    labels: Path | None = None,
) -> None:
    check_model(model, weights, adapter)
    if image is not None and not image.exists():
        raise VolumeError(f"There is no file or folder {image}; give the path of an image.")
    for root in roots:
        if not root.is_dir():
            raise SettingsError(f"--root {root} is not a folder; give a folder whose files may be opened.")
    if worklist is not None and not worklist.is_dir():
        raise SettingsError(f"--worklist {worklist} is not a folder; make it, or give another.")
    if labels is not None:
        read_label_set(labels)
    from medsam_app.browser.security.accounts import read_accounts

    pairs = read_accounts(auth, auth_file)
    with step("Loading the browser app"):
        from medsam_app.browser import app
    app.serve(
        image,
        host=host,
        port=port,
        roots=list(roots),
        worklist=worklist,
        model=model,
        weights=weights,
        adapter=adapter,
        device=device,
        open_browser=open_browser,
        auth=pairs or None,
        session_bytes=None if session_memory is None else int(session_memory * 1e9),
        labels=labels,
    )


def info(image: Path, *, series: str | None, frame: int | None, channel: int | None) -> None:
    with step(f"Reading {image.name}"):
        from medsam_app.io.describe import describe

        found = describe(image, series=series, frame=frame, channel=channel)
    # What the file does not say is left out.
    known = {key.replace("_", " "): value for key, value in found.items() if value not in (None, [], (), {})}
    width = max(map(len, known), default=0)
    for key, value in known.items():
        for number, line in enumerate(_lines(value)):
            say(f"{key if number == 0 else '':<{width}}  {line}")


def geometry(volume: Volume) -> str:
    """Shape, spacing and orientation of a volume in words."""
    from medsam_app.grid.geometry import format_mm

    grid = volume.grid
    return f"{' x '.join(str(n) for n in grid.shape)} voxels, {format_mm(grid.spacing)}, {grid.orientation}"


def _lines(value: Any) -> list[str]:
    """A value of `describe` as lines: numbers on one, everything else on one each."""
    if isinstance(value, dict):
        return [f"{key}: {' '.join(_lines(each))}" for key, each in value.items() if each is not None]
    if isinstance(value, list | tuple):
        if all(isinstance(each, int | float) for each in value):
            return ["  ".join(_lines(each)[0] for each in value)]
        return [line for each in value for line in _lines(each)]
    return [f"{value:g}" if isinstance(value, float) else str(value)]
