"""CSV tables as people and spreadsheets write them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_app.errors import MedsamError


def read_table(
    path: Path, *, error: type[MedsamError]
) -> tuple[list[str], list[tuple[int, Mapping[str, Any]]]]:
    """The columns of a table in lower case, and its rows by column, each with the number of its line.

    Args:
        error: what is raised where it cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            # spreadsheets write semicolons where the comma is the decimal point
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            columns = [str(column).strip().lower() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            return columns, [(reader.line_num, row) for row in reader]
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); check its permissions.") from None
    except (csv.Error, UnicodeDecodeError) as problem:
        raise error(f"{path} is not a CSV table in UTF-8 ({problem}); save it again.") from None
