"""Partial results of an evaluation, case by case, so that an interrupted run can be resumed.

The file begins with a line of settings; each further line holds what was measured on one case. A line is on
the disk before the next case is begun. At the end of the run the file is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsam_app.atomic import save_whole
from medsam_app.errors import SaveError, SettingsError
from medsam_app.evaluate.click_through import CaseScores
from medsam_app.evaluate.gallery import CaseKey, Gallery
from medsam_app.measure.scores import FalseLabel, Score

#: Ending of the file, after the name of the first output file.
ENDING = ".partial"


class PartialResults:
    """Results of the cases measured so far.

    Args:
        path: the file; it is created if it does not exist.
        settings: everything that determines the scores of a case, as JSON values by name.
        overwrite: whether a file with other settings is replaced.

    Attributes:
        resumed: number of cases in the file when it was opened.

    Raises:
        SettingsError: the file was begun with other settings.
        SaveError: the file cannot be written, or is no such file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self._lines: dict[CaseKey, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))
        if path.is_file():
            begun, lines = _read(path)
            different = sorted(name for name in {*begun, *settings} if begun.get(name) != settings.get(name))
            if not different:
                self._lines = lines
            elif not overwrite:
                listed = (
                    f"{name}: {begun.get(name)!r} there, {settings.get(name)!r} now" for name in different
                )
                raise SettingsError(
                    f"{path} holds an unfinished evaluation with other settings "
                    f"({'; '.join(listed)}); repeat its command to finish it, name another output, or give "
                    "--overwrite to discard it."
                )
        self.resumed = len(self._lines)
        # Written again as a whole: a line that a kill has cut off is gone, and the folder is writable.
        self._write([{"settings": settings}, *self._lines.values()])

    def take(self, key: CaseKey, files: str, gallery: Gallery | None) -> CaseScores | None:
        """Return what was measured on a case, or None.

        Args:
            key: dataset, modality and name of the case.
            files: state of its files, see `state_of_files`; a changed case is measured again.
            gallery: receives the picture of the case; without one in the file the case is measured again.
        """
        line = self._lines.get(key)
        if line is None or line["files"] != files:
            return None
        if gallery is not None and line["scores"]:  # without an object there is no picture
            if line["picture"] is None:
                return None
            gallery.restore(key, line["picture"])
        return CaseScores(
            [Score(**values) for values in line["scores"]],
            line["small"],
            [FalseLabel(**values) for values in line["false"]],
        )

    def add(self, key: CaseKey, files: str, scores: CaseScores, gallery: Gallery | None) -> None:
        """Append what was measured on a case, and flush it to the disk.

        Raises:
            SaveError: the line cannot be written.
        """
        line = {
            "case": key,
            "files": files,
            "small": scores.small,
            "scores": [asdict(score) for score in scores.scores],
            "false": [asdict(label) for label in scores.false],
            "picture": None if gallery is None else gallery.stored(key),
        }
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise SaveError(f"{self.path} cannot be written ({error.strerror}); make room there.") from None

    def remove(self) -> None:
        """Remove the file, after the results were written."""
        self.path.unlink(missing_ok=True)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        save_whole(self.path, "".join(json.dumps(line) + "\n" for line in lines))


def state_of_files(*paths: Path) -> str:
    """Return a hash of the names, sizes and times of files, which differs after one has changed."""
    state = hashlib.sha256()
    for path in paths:
        try:
            facts = path.stat()
            state.update(f"{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
        except OSError:
            state.update(f"{path}\0missing\0".encode())
    return state.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[CaseKey, dict[str, Any]]]:
    """Return the settings and the complete lines of a file."""
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines() or [""]
        settings = json.loads(first)["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SaveError(
            f"{path} is no unfinished evaluation; move it away, or name another output."
        ) from None
    lines: dict[CaseKey, dict[str, Any]] = {}
    for text in rest:
        try:
            line = json.loads(text)
        except ValueError:  # cut off by a kill
            continue
        dataset, modality, case = line["case"]
        lines[dataset, modality, case] = line
    return dict(settings), lines
