"""Label sets: the named objects of a task, read from a file.

CSV with a line of titles, or JSON: a list of objects, or an object with that list as 'labels'.

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
#: More labels, or more bytes, than this are no label set.
MOST_LABELS, MOST_BYTES = 1000, 1 << 20
_YES, _NO = ("yes", "true", "1", "y", ""), ("no", "false", "0", "n")


@dataclass(frozen=True)
class Label:
    """Object of a label set; fields as for `SegmentedObject`."""

    name: str
    label: int
    colour: str
    may_overlap: bool = True


def read_label_set(path: Path) -> tuple[Label, ...]:
    """The labels of a file, in its order.

    Labels without a value are numbered, and those without a colour get one of the palette.

    Raises:
        SettingsError: it cannot be read or is no label set; the sentence says where it is wrong.
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
    made: list[SegmentedObject] = []
    for number, (where, row) in enumerate(rows, start=1):
        try:
            made.append(_label(row, number, made, rows))
        except SettingsError as error:
            raise SettingsError(f"{path.name}, {where}: {error}") from None
    return tuple(Label(each.name, each.label, each.colour, each.may_overlap) for each in made)


def next_label(labels: Sequence[Label], others: Sequence[SegmentedObject]) -> Label | None:
    """The first label of a set whose name and value none of the others has."""
    names, values = {each.name for each in others}, {each.label for each in others}
    return next((each for each in labels if each.name not in names and each.label not in values), None)


def _json(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise SettingsError(f"{path.name} is not JSON; write it again, or give a CSV table.") from None
    rows = held.get("labels") if isinstance(held, dict) else held
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
    others: Sequence[SegmentedObject],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
) -> SegmentedObject:
    unknown = [str(key) for key in row if key not in COLUMNS]
    if unknown:
        raise SettingsError(f"'{unknown[0][:40]}' is not one of {', '.join(COLUMNS)}.")
    given = {key: str(value).strip() for key, value in row.items() if value is not None}
    name = checked_name(given.get("name", ""), others)
    text = given.get("label", "")
    if not text:
        taken = {str(each.get("label") or "").strip() for _, each in rows} | {str(o.label) for o in others}
        text = next(str(n) for n in range(number, number + 2 * MOST_LABELS) if str(n) not in taken)
    label = checked_label(int(text) if text.isdecimal() and len(text) < 9 else 0, others)
    colour = given.get("colour", "")
    colour = checked_colour(colour) if colour else next_colour([each.colour for each in others])
    may = given.get("may_overlap", "").lower()
    if may not in (*_YES, *_NO):
        raise SettingsError(f"may_overlap is 'yes' or 'no'; got '{may[:20]}'.")
    return SegmentedObject(id=str(number), name=name, label=label, colour=colour, may_overlap=may in _YES)
