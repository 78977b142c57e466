"""Reader for CSV tables with commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_app.errors import MedsamError


def read_table(
    path: Path, *, error: type[MedsamError]
) -> tuple[list[str], list[tuple[int, Mapping[str, Any]]]]:
    """Return the column names of a table in lower case, and its rows with their line numbers.

    Args:
        path: a CSV file in UTF-8, with the column names in its first line.
        error: type of the error to raise if the table cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            # Spreadsheets write semicolons in locales with a decimal comma.
            reader = csv.DictReader(file, delimiter=max(",;\t", key=first.count))
            columns = [str(column).strip().lower() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            return columns, [(reader.line_num, row) for row in reader]
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); check its permissions.") from None
    except (csv.Error, UnicodeDecodeError) as problem:
        raise error(f"{path} is not a CSV table in UTF-8 ({problem}); save it again.") from None
