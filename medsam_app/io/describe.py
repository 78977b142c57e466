"""Description of a file for `medsam-app info`: grid, intensities, frames, series."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_app.errors import SeriesChoice
from medsam_app.io.formats import TITLES
from medsam_app.io.headers import find_format, inspect
from medsam_app.io.loading import list_series, load_volume

#: Percentiles come from at most about this many voxels, evenly spread.
_SAMPLE = 2_000_000


def describe(
    path: str | Path, *, series: str | None = None, frame: int | None = None, channel: int | None = None
) -> dict[str, Any]:
    """Return facts about a volume as JSON-compatible values.

    If there are several series and none is chosen, only the series are listed. If there are several frames
    or channels and none is chosen, the first is described; "chosen" holds its number.

    Returns:
        path, format, series (list of uid, number, description, modality, slices, columns, rows), frames,
        channels, chosen (series, frame, channel or None) and, unless a series must be chosen first, shape
        (i, j, k), spacing_mm, orientation, size_mm, affine (4 x 4 to mm in RAS+), dtype, stored_dtype,
        modality, modality_guess, intensity (min, p1, median, p99, max), notes.

    Raises:
        VolumeError: the file or folder cannot be used as a volume.
    """
    path = Path(path).expanduser()
    format = find_format(path)
    facts: dict[str, Any] = {
        "path": str(path),
        "format": TITLES[format],
        "series": [asdict(info) for info in list_series(path)],
        "frames": 1,
        "channels": 1,
        "chosen": None,
        "stored_dtype": None,
        "notes": [],
    }
    if format == "dicom":
        try:
            volume = load_volume(path, series=series, channel=channel)
            if frame:  # the series has one frame, so this raises the error for a wrong number
                volume = load_volume(path, series=series, frame=frame, channel=channel)
        except SeriesChoice as choice:
            if choice.option == "series":
                facts["notes"] = [str(choice)]
                return facts
            facts["frames"] = len(choice.choices)
            volume = load_volume(path, series=series, frame=frame or 0, channel=channel)
    else:
        header = inspect(path, format)
        facts |= {
            "frames": header.frames,
            "channels": header.channels,
            "stored_dtype": header.dtype.newbyteorder("=").name,
        }
        # Colour images are refused unless a channel is chosen explicitly.
        first = 0 if header.channels > 1 and not header.rgb else None
        volume = load_volume(
            path, series=series, frame=frame or 0, channel=channel if channel is not None else first
        )
    grid = volume.grid
    intensity = intensities(volume.array)
    return facts | {
        "chosen": {"series": volume.series, "frame": volume.frame, "channel": volume.channel},
        "shape": list(volume.shape),
        "spacing_mm": [round(float(v), 6) for v in grid.spacing],
        "orientation": grid.orientation,
        "size_mm": [round(float(v), 3) for v in grid.spacing * volume.shape],
        "affine": volume.affine.tolist(),
        "dtype": volume.array.dtype.name,
        "modality": volume.modality,
        "modality_guess": volume.modality or guess_modality(intensity),
        "intensity": intensity,
        "notes": list(volume.notes),
    }


def intensities(array: NDArray) -> dict[str, float]:
    """Return minimum, maximum and percentiles of an (i, j, k) array; percentiles come from a sample."""
    step = max(1, round((array.size / _SAMPLE) ** (1 / 3)))
    p1, median, p99 = np.percentile(array[::step, ::step, ::step], (1, 50, 99))
    values = {"min": array.min(), "p1": p1, "median": median, "p99": p99, "max": array.max()}
    return {name: float(value) for name, value in values.items()}


def guess_modality(intensity: dict[str, float]) -> str | None:
    """Return CT if air and tissue have their Hounsfield units, else None."""
    air = -3100 <= intensity["min"] <= -900
    return "CT" if air and intensity["p99"] < 4000 and intensity["max"] < 40000 else None
