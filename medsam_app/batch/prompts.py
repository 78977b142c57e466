"""Prompts for the volumes of a folder: prompt files, a table, or coarse masks."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam_app.batch.settings import BatchSettings
from medsam_app.errors import PromptError, PromptFileError
from medsam_app.grid.geometry import Grid
from medsam_app.io.csv_columns import read_table
from medsam_app.io.formats import SUFFIXES, stem
from medsam_app.io.loading import load_mask
from medsam_app.io.volume import Volume
from medsam_app.io.volume_folder import FoundVolume
from medsam_app.prompts.simulated_clicks import click_inside, jittered_box
from medsam_app.prompts.types import Box, Coordinates, Point
from medsam_app.session.objects import AnyPrompt
from medsam_app.session.prompt_file import SUFFIX
from medsam_app.session.prompt_schema import voxel_of, world_box

#: Coordinate columns of a table: voxel indices or mm; the opposite corner of a box has the suffix 2.
_PLACES = (("i", "j", "k"), ("x", "y", "z"))
_SIGNS = {"1": True, "+": True, "positive": True, "inside": True, "": True, "+1": True} | dict.fromkeys(
    ("0", "-", "-1", "negative", "outside"), False
)
#: Maximum number of problems listed in one message.
_MOST_PROBLEMS = 12


@dataclass(frozen=True)
class Row:
    """A point or a box of a table.

    Attributes:
        label: label value of the object.
        name: name of the object, '' if none is given.
        place: voxel indices, or mm in RAS+ if `world` is set.
        corner: opposite corner of a box, None for a point.
        positive: whether a point is inside the object.
        world: whether coordinates are in mm.
    """

    label: int
    name: str
    place: Coordinates
    corner: Coordinates | None
    positive: bool
    world: bool


@dataclass(frozen=True)
class CasePrompts:
    """Prompts for one volume. If all fields are empty, segment the labels the adapter learned.

    Attributes:
        missing: why no prompt file, rows or mask exist for the volume; empty if they do.
    """

    prompt_file: Path | None = None
    rows: tuple[Row, ...] = ()
    mask: Path | None = None
    missing: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files to read in addition to the volume."""
        return tuple(path for path in (self.prompt_file, self.mask) if path is not None)


@dataclass(frozen=True)
class ObjectRequest:
    """An object to segment: its label value, its name or '', and its prompts in voxel indices."""

    label: int
    name: str
    prompts: list[AnyPrompt]


@dataclass(frozen=True)
class Prompts:
    """Prompts of each volume of a folder.

    Args:
        folder: folder of the volumes.
        settings: settings of the run, with the source of the prompts.

    Raises:
        PromptFileError: the table cannot be read, or names images that do not exist.
    """

    folder: Path
    settings: BatchSettings

    def of(self, volumes: Sequence[FoundVolume]) -> list[CasePrompts]:
        """Return the prompts of each volume, in the order of the volumes."""
        settings = self.settings
        if settings.automatic:
            return [CasePrompts()] * len(volumes)
        if settings.masks is not None:
            return [self._mask(volume, settings.masks) for volume in volumes]
        if settings.prompts is not None and settings.prompts.is_file():
            rows = _rows_of(settings.prompts, volumes, self.folder)
            return [
                CasePrompts(rows=tuple(rows[volume.case]))
                if volume.case in rows
                else CasePrompts(missing=f"{settings.prompts.name} has no row for it")
                for volume in volumes
            ]
        return [self._prompt_file(volume) for volume in volumes]

    def _prompt_file(self, volume: FoundVolume) -> CasePrompts:
        root = self.settings.prompts or self.folder
        # If the input folder itself is one series of slices, its prompt file is inside it.
        path = root / f"{volume.case}{SUFFIX}"
        return CasePrompts(prompt_file=path) if path.is_file() else CasePrompts(missing=f"there is no {path}")

    def _mask(self, volume: FoundVolume, root: Path) -> CasePrompts:
        for suffix in SUFFIXES:
            path = root / f"{volume.case}{suffix}"
            if path.is_file():
                return CasePrompts(mask=path)
        return CasePrompts(missing=f"there is no mask {root / volume.case}.nii.gz, nor one of another format")


def objects_of_rows(rows: Sequence[Row], grid: Grid) -> list[ObjectRequest]:
    """Return the objects of a table's rows: boxes first, then points, each in the order of the table."""
    by_label: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    return [
        ObjectRequest(
            label,
            next((row.name for row in object_rows if row.name), ""),
            [_prompt(row, grid) for row in sorted(object_rows, key=lambda row: row.corner is None)],
        )
        for label, object_rows in by_label.items()
    ]


def objects_of_mask(path: Path, volume: Volume, settings: BatchSettings, case: str) -> list[ObjectRequest]:
    """Return one object per label of a coarse mask, with prompts derived from it.

    Raises:
        MedsamError: the mask cannot be read or does not match the grid of the image.
    """
    mask = load_mask(path, volume.grid)
    values = [int(value) for value in np.unique(mask) if value]
    if not values:
        raise PromptError(f"The mask '{path.name}' is empty: it does not say where anything is.")
    case_seed = zlib.crc32(case.encode("utf-8", "surrogateescape"))
    objects = []
    for value in values:
        rng = np.random.default_rng([settings.seed, case_seed, value])
        inside = mask == value
        prompts: list[AnyPrompt] = []
        if settings.from_masks in ("box", "both"):
            low, high = jittered_box(inside, rng, settings.jitter)
            prompts.append(Box(lower=low, upper=high))
        if settings.from_masks in ("point", "both"):
            i, j, k = click_inside(inside, spacing=volume.spacing, rng=rng if settings.jitter else None)
            prompts.append(Point(coordinates=(i, j, k)))
        objects.append(ObjectRequest(value, "", prompts))
    return objects


def _prompt(row: Row, grid: Grid) -> AnyPrompt:
    if row.corner is not None:
        if row.world:
            return world_box(row.place, row.corner, grid)
        return Box(lower=row.place, upper=row.corner)
    return Point(coordinates=voxel_of(row.place, grid) if row.world else row.place, positive=row.positive)


def _rows_of(path: Path, volumes: Sequence[FoundVolume], folder: Path) -> dict[str, list[Row]]:
    """Return the rows of a table by case.

    Raises:
        PromptFileError: with every problem of the table.
    """
    cases = _by_name(volumes, folder)
    rows: dict[str, list[Row]] = defaultdict(list)
    problems: list[str] = []
    for line, values in _table(path):
        image = (values.get("image") or "").strip().replace("\\", "/")
        matches = cases.get(image.lower(), [])
        if len(matches) != 1:
            problem = f"{len(matches)} images of that name" if matches else "no such image"
            problems.append(f"line {line}: there are {problem} in {folder}: '{image}'")
            continue
        try:
            rows[matches[0]].append(_row(values))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise PromptFileError(f"The table {path} has {count}: {'; '.join(problems[:_MOST_PROBLEMS])}{more}.")
    return rows


def _by_name(volumes: Sequence[FoundVolume], folder: Path) -> dict[str, list[str]]:
    """Return cases by each lower-case name: path with or without suffix, or file name alone."""
    cases: dict[str, list[str]] = defaultdict(list)
    for volume in volumes:
        relative = volume.path.relative_to(folder).as_posix()
        names = {
            volume.case,
            relative if volume.series is None else volume.case,
            volume.case.rsplit("/", 1)[-1],
        }
        names |= {volume.path.name, stem(volume.path)} if volume.series is None else set()
        for name in {name.lower() for name in names}:
            cases[name].append(volume.case)
    exact = {volume.case.lower(): [volume.case] for volume in volumes}
    return cases | exact


def _table(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    """Return the rows by lower-case column, with their line numbers."""
    columns, rows = read_table(path, error=PromptFileError)
    complete = [axes for axes in _PLACES if set(axes) <= set(columns)]
    if "image" not in columns or len(complete) != 1:
        raise PromptFileError(
            f"{path} has the columns {', '.join(columns) or 'none'}; wanted are image, label and i, j, k "
            "(voxels from 0) or x, y, z (mm in RAS+), and where there are any sign, name and i2, j2, k2 or "
            "x2, y2, z2 (the opposite corner of a box)."
        )
    return rows


def _row(values: Mapping[str, str]) -> Row:
    """Parse a row of a table; raise `ValueError` with the problem."""
    world = "x" in values
    axes = _PLACES[world]
    place = _triple(values, axes)
    if place is None:
        raise ValueError(f"{', '.join(axes)} are empty")
    label = (values.get("label") or "1").strip()
    if not label.isdecimal() or not int(label):
        raise ValueError(f"the label is a whole number from 1; got '{label}'")
    sign = (values.get("sign") or "").strip().lower()
    if sign not in _SIGNS:
        raise ValueError(f"the sign is 1 or 0, + or -, positive or negative; got '{sign}'")
    corner = _triple(values, tuple(f"{axis}2" for axis in axes))
    if corner is not None and not _SIGNS[sign]:
        raise ValueError("a box is always positive")
    name = (values.get("name") or "").strip()
    return Row(int(label), name, place, corner, _SIGNS[sign], world)


def _triple(values: Mapping[str, str], axes: Sequence[str]) -> Coordinates | None:
    texts = [(values.get(axis) or "").strip().replace(",", ".") for axis in axes]
    if not any(texts):
        return None
    try:
        i, j, k = (float(text) for text in texts)
    except ValueError:
        raise ValueError(f"{', '.join(axes)} are numbers; got {', '.join(map(repr, texts))}") from None
    if not np.isfinite([i, j, k]).all():
        raise ValueError(f"{', '.join(axes)} are finite numbers; got {', '.join(texts)}")
    return i, j, k
