"""All bad inputs and their error messages.

`python -m tests.support.bad_inputs > docs/errors.md` writes the page; a test keeps it up to date.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support import bad_dicom, bad_files, bad_lists, bad_masks, bad_models, bad_recipes
from tests.support.bad_kit import BAD_INPUTS, BadInput

__all__ = [
    "BAD_INPUTS",
    "bad_dicom",
    "bad_files",
    "bad_lists",
    "bad_masks",
    "bad_models",
    "bad_recipes",
    "page",
    "sentence",
]


def sentence(item: BadInput) -> str:
    """Return the error message of a case, without the path of its folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "folder"
        folder.mkdir()
        try:
            item.run(folder)
        except item.kind as error:
            if type(error) is not item.kind:
                raise
            return str(error).replace(str(folder), "folder")
    raise AssertionError(f"{item.what}: no error was raised")


def page() -> str:
    """Return the text of docs/errors.md."""
    text = "# Error messages for bad input\n\n"
    text += "Written by `python -m tests.support.bad_inputs > docs/errors.md`; every row is run as a test.\n"
    for title, module in (
        ("Files", bad_files),
        ("Kinds of image, and DICOM", bad_dicom),
        ("Masks", bad_masks),
        ("Datasets and worklists", bad_lists),
        ("Models, weights and adapters", bad_models),
        ("Recipes and runs of training", bad_recipes),
    ):
        rows = [
            f"| {item.what} | {sentence(item)} |\n"
            for item in BAD_INPUTS
            if item.run.__module__ == module.__name__
        ]
        text += f"\n## {title}\n\n| input | message |\n|---|---|\n" + "".join(rows)
    return text


if __name__ == "__main__":
    sys.stdout.write(page())
