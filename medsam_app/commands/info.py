"""`medsam-app info`: print the description of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_app.console import say, step


def info(image: Path, *, series: str | None, frame: int | None, channel: int | None) -> None:
    """Print the description of an image."""
    with step(f"Reading {image.name}"):
        from medsam_app.io.describe import describe

        found = describe(image, series=series, frame=frame, channel=channel)
    # What the file does not say is left out.
    known = {key.replace("_", " "): value for key, value in found.items() if value not in (None, [], (), {})}
    width = max(map(len, known), default=0)
    for key, value in known.items():
        for number, line in enumerate(_lines(value)):
            say(f"{key if number == 0 else '':<{width}}  {line}")


def _lines(value: Any) -> list[str]:
    """Format a value of `describe` as lines: all numbers on one line, other items one per line."""
    if isinstance(value, dict):
        return [f"{key}: {' '.join(_lines(each))}" for key, each in value.items() if each is not None]
    if isinstance(value, list | tuple):
        if all(isinstance(each, int | float) for each in value):
            return ["  ".join(_lines(each)[0] for each in value)]
        return [line for each in value for line in _lines(each)]
    return [f"{value:g}" if isinstance(value, float) else str(value)]
