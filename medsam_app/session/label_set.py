"""Label sets: the named objects of a task, read from a file.

A label set is a CSV file with a header line, or a JSON file. The JSON holds a list of objects, or an object
with that list under 'labels'. Example:

    name,label,colour,may_overlap
    liver,1,#e69f00,no
    lesion,2,#56b4e9,yes
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_app.errors import SettingsError
from medsam_app.io.csv_columns import read_table
from medsam_app.session.objects import (
    SegmentedObject,
    checked_colour,
    checked_label,
    checked_name,
    next_colour,
)

COLUMNS = ("name", "label", "colour", "may_overlap")
#: Largest number of labels and largest file size in bytes.
MOST_LABELS, MOST_BYTES = 1000, 1 << 20
_YES, _NO = ("yes", "true", "1", "y", ""), ("no", "false", "0", "n")


@dataclass(frozen=True)
class Label:
    """Label of a label set; fields as in `SegmentedObject`."""

    name: str
    label: int
    colour: str
    may_overlap: bool = True


def read_label_set(path: Path) -> tuple[Label, ...]:
    """Read the labels of a file, in the order of the file.

    Labels without a value are numbered. Labels without a colour get one from the palette.

    Raises:
        SettingsError: the file cannot be read or is not a label set; the message gives the place.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SettingsError(f"{path.name} is larger than a label set may be, {MOST_BYTES >> 20} MiB.")
        rows = _json(path) if path.suffix.lower() == ".json" else _table(path)
    except OSError as error:
        raise SettingsError(
            f"The label set {path} cannot be read ({error.strerror}); give a CSV or JSON file."
        ) from None
    if not rows or len(rows) > MOST_LABELS:
        raise SettingsError(f"{path.name} holds {len(rows)} labels; a label set has 1 to {MOST_LABELS}.")
    objects: list[SegmentedObject] = []
    for number, (where, row) in enumerate(rows, start=1):
        try:
            objects.append(_label(row, number, objects, rows))
        except SettingsError as error:
            raise SettingsError(f"{path.name}, {where}: {error}") from None
    return tuple(Label(item.name, item.label, item.colour, item.may_overlap) for item in objects)


def next_label(labels: Sequence[Label], existing: Sequence[SegmentedObject]) -> Label | None:
    """Return the first label of a set whose name and value no object uses, or None."""
    names, values = {item.name for item in existing}, {item.label for item in existing}
    return next((label for label in labels if label.name not in names and label.label not in values), None)


def _json(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise SettingsError(f"{path.name} is not JSON; write it again, or give a CSV table.") from None
    rows = data.get("labels") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{path.name} is no label set: it must be a list of objects, each with a 'name'.")
    return [(f"label {n}", row) for n, row in enumerate(rows, start=1)]


def _table(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    columns, rows = read_table(path, error=SettingsError)
    if "name" not in columns:
        raise SettingsError(f"{path.name} has no column 'name'; its first line is {','.join(COLUMNS)}.")
    return [(f"line {line}", row) for line, row in rows]


def _label(
    row: Mapping[str, Any],
    number: int,
    existing: Sequence[SegmentedObject],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
) -> SegmentedObject:
    unknown = [str(key) for key in row if key not in COLUMNS]
    if unknown:
        raise SettingsError(f"'{unknown[0][:40]}' is not one of {', '.join(COLUMNS)}.")
    fields = {key: str(value).strip() for key, value in row.items() if value is not None}
    name = checked_name(fields.get("name", ""), existing)
    text = fields.get("label", "")
    if not text:
        taken = {str(entry.get("label") or "").strip() for _, entry in rows}
        taken |= {str(item.label) for item in existing}
        text = next(str(n) for n in range(number, number + 2 * MOST_LABELS) if str(n) not in taken)
    label = checked_label(int(text) if text.isdecimal() and len(text) < 9 else 0, existing)
    colour = fields.get("colour", "")
    colour = checked_colour(colour) if colour else next_colour([item.colour for item in existing])
    overlap = fields.get("may_overlap", "").lower()
    if overlap not in (*_YES, *_NO):
        raise SettingsError(f"may_overlap is 'yes' or 'no'; got '{overlap[:20]}'.")
    return SegmentedObject(id=str(number), name=name, label=label, colour=colour, may_overlap=overlap in _YES)
