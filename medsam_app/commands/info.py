"""`medsam-app info`: print the description of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_app.console import say, step


def info(image: Path, *, series: str | None, frame: int | None, channel: int | None) -> None:
    """Print the description of an image."""
    with step(f"Reading {image.name}"):
        from medsam_app.io.describe import describe

        description = describe(image, series=series, frame=frame, channel=channel)
    # Leave out what the file does not specify.
    known = {
        key.replace("_", " "): value for key, value in description.items() if value not in (None, [], (), {})
    }
    width = max(map(len, known), default=0)
    for key, value in known.items():
        for number, line in enumerate(_lines(value)):
            say(f"{key if number == 0 else '':<{width}}  {line}")


def _lines(value: Any) -> list[str]:
    """Format a value of `describe` as lines: all numbers on one line, other items one per line."""
    if isinstance(value, dict):
        return [f"{key}: {' '.join(_lines(item))}" for key, item in value.items() if item is not None]
    if isinstance(value, list | tuple):
        if all(isinstance(item, int | float) for item in value):
            return ["  ".join(_lines(item)[0] for item in value)]
        return [line for item in value for line in _lines(item)]
    return [f"{value:g}" if isinstance(value, float) else str(value)]
