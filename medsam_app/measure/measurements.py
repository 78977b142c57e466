"""Measurements of an object: size, diameters, areas, intensities; tables of them."""

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
#: What spreadsheets take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Areas:
    """The area of an object in each slice of a plane.

    Attributes:
        plane: as in `Diameter`.
        first: index of the first slice, along the axis of the file that runs through the plane.
        mm2: square millimetres in that slice and the following ones.
    """

    plane: str
    first: int
    mm2: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """Measurements of one mask; an empty mask has no diameters and areas, and zeros otherwise.

    Attributes:
        voxels, volume_ml: of the mask.
        diameters: the longest one of each plane.
        areas: of each plane.
        mean, sd, low, high: of the intensities inside, in the file's unit; `sd` is that of these voxels, not
            an estimate for others.
        first, last: (i, j, k) corners of the bounding box, both inside it.
        box_mm: its sides along the axes of the file that are closest to right-left, front-back and
            head-foot, outer faces included.
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
        grid: of the intensities.
    """
    patch = patch.tight()
    if not patch.mask.size:
        return Measurement(0, 0.0, (), (), 0.0, 0.0, 0.0, 0.0, (0, 0, 0), (0, 0, 0), (0.0, 0.0, 0.0))
    values = array[patch.slices][patch.mask].astype(np.float64)
    voxels = patch.voxels
    sizes = np.array(patch.mask.shape) * grid.spacing
    found = [longest_diameter(patch, grid, plane) for plane in PLANES]
    return Measurement(
        voxels=voxels,
        volume_ml=voxels * grid.voxel_volume_ml,
        diameters=tuple(each for each in found if each is not None),
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
    others = tuple(other for other in range(3) if other != axis)
    pixel = np.linalg.norm(np.cross(grid.affine[:3, others[0]], grid.affine[:3, others[1]]))
    counts = patch.mask.sum(axis=others)
    return Areas(plane, patch.start[axis], tuple((counts * pixel).tolist()))


def object_table(rows: Iterable[tuple[int, str, Measurement]], *, unit: str = "") -> str:
    """Return a CSV table with the columns of `COLUMNS`; missing values are left empty.

    Args:
        rows: label value, name and measurement of each object.
        unit: of the intensities.
    """
    table = []
    for label, name, made in rows:
        row: dict[str, Any] = {"label": label, "name": _text(name), "volume_ml": _number(made.volume_ml)}
        row |= {"voxels": made.voxels, "unit": unit}
        for each in made.diameters:
            row[f"{each.plane}_diameter_mm"] = _number(each.length_mm)
            row[f"{each.plane}_across_mm"] = _number(each.across_mm)
            row[f"{each.plane}_slice"] = each.slice
        if made.voxels:
            spread = {"mean": made.mean, "sd": made.sd, "min": made.low, "max": made.high}
            row |= {column: _number(value) for column, value in spread.items()}
            for side, mm in zip(("rl", "ap", "si"), made.box_mm, strict=True):
                row[f"box_{side}_mm"] = _number(mm)
            for axis, low, high in zip("ijk", made.first, made.last, strict=True):
                row[f"first_{axis}"], row[f"last_{axis}"] = low, high
        table.append(row)
    return _written(COLUMNS, table)


def area_table(rows: Iterable[tuple[int, str, Measurement]]) -> str:
    """A CSV table with the columns of `AREA_COLUMNS`: a row for each slice between an object's ends."""
    return _written(
        AREA_COLUMNS,
        [
            {"label": label, "name": _text(name), "plane": areas.plane, "slice": areas.first + number,
             "area_mm2": _number(area)}
            for label, name, made in rows
            for areas in made.areas
            for number, area in enumerate(areas.mm2)
        ],
    )  # fmt: skip


def _written(columns: Sequence[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def _number(value: float) -> str:
    """Six significant digits, never exponents: millilitres of a voxel and Hounsfield units alike."""
    return np.format_float_positional(value, precision=6, unique=False, fractional=False, trim="-")
