"""Files of an evaluation: scores as CSV, summaries as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_app._version import __version__
from medsam_app.atomic import save_whole
from medsam_app.measure.scores import Score

if TYPE_CHECKING:  # heavy
    from medsam_app.evaluate.run import Evaluation


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """Write one row per score with the fields of `Score`; None becomes an empty cell.

    Raises:
        SaveError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    save_whole(path, text.getvalue())


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write an `Evaluation` without its single scores, and the version of the program.

    Undefined values are null.

    Raises:
        SaveError: the file cannot be written.
    """
    document = {"medsam_app": __version__} | asdict(evaluation)
    del document["scores"]
    save_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
