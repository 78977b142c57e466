"""An evaluation as files: every score as CSV, the summaries as JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_app import __version__
from medsam_app.errors import SaveError
from medsam_app.scores import Score

if TYPE_CHECKING:  # heavy
    from medsam_app.evaluate import Evaluation


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """A row a score, with the fields of `Score`; what is None is left empty.

    Raises:
        SaveError: the file could not be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(score) for score in scores)
    _write(text.getvalue(), path)


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Everything of an `Evaluation` but the single scores, and the version that measured it.

    Raises:
        SaveError: the file could not be written.
    """
    whole = {"medsam_app": __version__} | asdict(evaluation)
    del whole["scores"]
    _write(json.dumps(whole, indent=1, allow_nan=False) + "\n", path)


def _write(text: str, path: Path) -> None:
    """Write under a temporary name, then rename: what lies there is whole at any time."""
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; the umask says what is wanted here.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise SaveError(
            f"{path} could not be written ({error.strerror or error}); free some space or write elsewhere."
        ) from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
