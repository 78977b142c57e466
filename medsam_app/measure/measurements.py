"""Measurements of an object (size, diameters, areas, intensities), and tables of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index, Patch
from medsam_app.measure.diameters import PLANES, Diameter, longest_diameter

#: Columns of the table of objects, in order.
COLUMNS = (
    "label", "name", "volume_ml", "voxels",
    *(f"{plane}_{what}" for plane in PLANES for what in ("diameter_mm", "across_mm", "slice")),
    "mean", "sd", "min", "max", "unit",
    "box_rl_mm", "box_ap_mm", "box_si_mm",
    "first_i", "first_j", "first_k", "last_i", "last_j", "last_k",
)  # fmt: skip
#: Columns of the table of areas.
AREA_COLUMNS = ("label", "name", "plane", "slice", "area_mm2")
#: Characters that spreadsheets interpret as the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Areas:
    """Areas of an object in the slices of a plane.

    Attributes:
        plane: as in `Diameter`.
        first: index of the first slice, along the file's axis perpendicular to the plane.
        mm2: area in square millimetres in that slice and each following one.
    """

    plane: str
    first: int
    mm2: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """Measurements of one mask; an empty mask has no diameters or areas, and zeros otherwise.

    Attributes:
        voxels, volume_ml: size of the mask.
        diameters: longest diameter in each plane.
        areas: areas in each plane.
        mean, sd, low, high: statistics of the intensities inside, in the file's unit; `sd` is the population
            standard deviation of these voxels.
        first, last: (i, j, k) corners of the bounding box, both included.
        box_mm: sides of the bounding box in mm along the file's axes closest to right-left, front-back and
            head-foot, including the outer half voxels.
    """

    voxels: int
    volume_ml: float
    diameters: tuple[Diameter, ...]
    areas: tuple[Areas, ...]
    mean: float
    sd: float
    low: float
    high: float
    first: Index
    last: Index
    box_mm: tuple[float, float, float]


def measure(patch: Patch, array: NDArray, grid: Grid) -> Measurement:
    """Measure a mask.

    Args:
        patch: the mask.
        array: (i, j, k) intensities.
        grid: grid of the mask and the intensities.
    """
    patch = patch.tight()
    if not patch.mask.size:
        return Measurement(0, 0.0, (), (), 0.0, 0.0, 0.0, 0.0, (0, 0, 0), (0, 0, 0), (0.0, 0.0, 0.0))
    values = array[patch.slices][patch.mask].astype(np.float64)
    voxels = patch.voxels
    sizes = np.array(patch.mask.shape) * grid.spacing
    diameters = [longest_diameter(patch, grid, plane) for plane in PLANES]
    return Measurement(
        voxels=voxels,
        volume_ml=voxels * grid.voxel_volume_ml,
        diameters=tuple(diameter for diameter in diameters if diameter is not None),
        areas=tuple(_areas(patch, grid, plane) for plane in PLANES),
        mean=float(values.mean()),
        sd=float(values.std()),
        low=float(values.min()),
        high=float(values.max()),
        first=patch.start,
        last=tuple(n - 1 for n in patch.stop),  # type: ignore[arg-type]
        box_mm=tuple(float(sizes[axis]) for axis in grid.ras.axes),  # type: ignore[arg-type]
    )


def _areas(patch: Patch, grid: Grid, plane: str) -> Areas:
    axis = grid.ras.axes[PLANES[plane]]
    in_plane = tuple(a for a in range(3) if a != axis)
    pixel = np.linalg.norm(np.cross(grid.affine[:3, in_plane[0]], grid.affine[:3, in_plane[1]]))
    counts = patch.mask.sum(axis=in_plane)
    return Areas(plane, patch.start[axis], tuple((counts * pixel).tolist()))


def object_table(rows: Iterable[tuple[int, str, Measurement]], *, unit: str = "") -> str:
    """Return a CSV table with the columns of `COLUMNS`; missing values are left empty.

    Args:
        rows: label value, name and measurement of each object.
        unit: unit of the intensities.
    """
    table = []
    for label, name, measurement in rows:
        row: dict[str, Any] = {
            "label": label,
            "name": _text(name),
            "volume_ml": _number(measurement.volume_ml),
        }
        row |= {"voxels": measurement.voxels, "unit": unit}
        for diameter in measurement.diameters:
            row[f"{diameter.plane}_diameter_mm"] = _number(diameter.length_mm)
            row[f"{diameter.plane}_across_mm"] = _number(diameter.across_mm)
            row[f"{diameter.plane}_slice"] = diameter.slice
        if measurement.voxels:
            spread = {
                "mean": measurement.mean,
                "sd": measurement.sd,
                "min": measurement.low,
                "max": measurement.high,
            }
            row |= {column: _number(value) for column, value in spread.items()}
            for side, mm in zip(("rl", "ap", "si"), measurement.box_mm, strict=True):
                row[f"box_{side}_mm"] = _number(mm)
            for axis, low, high in zip("ijk", measurement.first, measurement.last, strict=True):
                row[f"first_{axis}"], row[f"last_{axis}"] = low, high
        table.append(row)
    return _to_csv(COLUMNS, table)


def area_table(rows: Iterable[tuple[int, str, Measurement]]) -> str:
    """Return a CSV table with the columns of `AREA_COLUMNS`: one row per slice between an object's ends."""
    return _to_csv(
        AREA_COLUMNS,
        [
            {"label": label, "name": _text(name), "plane": areas.plane, "slice": areas.first + number,
             "area_mm2": _number(area)}
            for label, name, measurement in rows
            for areas in measurement.areas
            for number, area in enumerate(areas.mm2)
        ],
    )  # fmt: skip


def _to_csv(columns: Sequence[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(name: str) -> str:
    """Return a name that no spreadsheet interprets as a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def _number(value: float) -> str:
    """Format a number with six significant digits and without an exponent.

    This suits both the millilitres of a voxel and Hounsfield units.
    """
    return np.format_float_positional(value, precision=6, unique=False, fractional=False, trim="-")
