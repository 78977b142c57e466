"""Collector of labelled cases and problems, for all layouts."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medsam_app.datasets.cases import Case
from medsam_app.errors import DatasetError
from medsam_app.io.formats import is_volume
from medsam_app.io.paths import exists

#: Names of label values, where the layout has no place of its own for them.
NAMES_FILE = "labels.json"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is wrong with a dataset.

    Attributes:
        severity: "error" where the case cannot be used, "warning" otherwise.
        kind: one word or two for what it is, the same for the same fault.
        dataset, case: what it is about; `case` is empty where it is the dataset as a whole.
        message: what, got, wanted and what to do.
        split: of the case, empty where nothing says so.
    """

    severity: Literal["error", "warning"]
    kind: str
    dataset: str
    case: str
    message: str
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled cases that were found, none of them read yet.

    Attributes:
        path: folder or list in which they were found.
        layout: what it was understood to be.
        cases: those of which both files are there.
        problems: what was wrong before any volume was read.
        names_in: where names of label values are given.
        sources: files that were read to find the cases.
    """

    path: Path
    layout: str
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    names_in: str
    sources: tuple[Path, ...] = ()


@dataclass
class Gathering:
    """Cases and problems while a layout is being read.

    Attributes:
        name: of the dataset.
        names: of label values.
        modality: of its images, empty where nothing says so.
    """

    name: str
    names: dict[int, str] = field(default_factory=dict)
    modality: str = ""
    cases: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def error(
        self, kind: str, case: str, message: str, *, dataset: str | None = None, split: str = ""
    ) -> None:
        """A case that cannot be used."""
        self._say("error", kind, case, message, dataset, split)

    def warning(self, kind: str, case: str, message: str, *, dataset: str | None = None) -> None:
        """Record a warning."""
        self._say("warning", kind, case, message, dataset)

    def _say(
        self,
        severity: Literal["error", "warning"],
        kind: str,
        case: str,
        message: str,
        dataset: str | None,
        split: str = "",
    ) -> None:
        about = self.name if dataset is None else dataset
        self.problems.append(
            Problem(severity=severity, kind=kind, dataset=about, case=case, message=message, split=split)
        )

    def add(
        self, case: str, image: Path, label: Path, *, split: str = "", channels: Iterable[Path] = ()
    ) -> None:
        """A case of this dataset, or the problem that a file of it is not there."""
        self.take(
            Case(
                dataset=self.name,
                modality=self.modality,
                case=case,
                names=self.names,
                image=image,
                label=label,
                split=split,
                channels=tuple(channels),
            )
        )

    def take(self, case: Case) -> None:
        """A case as it is, or the problem that a file of it is not there."""
        files = {"image": case.image, "label map": case.label}
        missing = {role: path for role, path in files.items() if not exists(path)}
        for role, path in missing.items():
            message = (
                f"The {role} {path} is listed but not there; put it there, or take the case off the list."
            )
            self.error(f"{role} missing", case.case, message, dataset=case.dataset, split=case.split)
        if not missing:
            self.cases.append(case)

    def no_label(self, case: str, image: Path, wanted: str) -> None:
        """An image without a label map; `wanted` is where that would be."""
        message = f"The image {image} has no label map; put it at {wanted}, or move the image away."
        self.error("label map missing", case, message)

    def no_image(self, case: str, label: Path, wanted: str) -> None:
        """A label map without an image; `wanted` is where that would be."""
        message = f"The label map {label} has no image; put it at {wanted}, or move the label map away."
        self.error("image missing", case, message)

    def finish(self, path: Path, layout: str, *, names_in: str, sources: Iterable[Path] = ()) -> Dataset:
        """Return the dataset, with problems for repeated entries."""
        _say_repeated(self)
        return Dataset(
            path=path,
            layout=layout,
            cases=tuple(self.cases),
            problems=tuple(self.problems),
            names_in=names_in,
            sources=tuple(sources),
        )


def _say_repeated(found: Gathering) -> None:
    """Warn of names that several cases have, and of images that several cases have."""
    by_name: dict[tuple[str, str], list[Case]] = {}
    by_image: dict[Path, list[Case]] = {}
    for case in found.cases:
        by_name.setdefault((case.dataset, case.case), []).append(case)
        by_image.setdefault(case.image.resolve(), []).append(case)
    for image, cases in by_image.items():
        if len(cases) > 1:
            known = ", ".join(dict.fromkeys(case.case for case in cases))
            message = f"The image {image} is listed {len(cases)} times ({known}); keep one of them."
            found.warning("listed twice", cases[0].case, message, dataset=cases[0].dataset)
    for (_, name), cases in by_name.items():
        if len({case.image.resolve() for case in cases}) > 1:
            message = f"{len(cases)} cases are called '{name}'; give each a name of its own."
            found.warning("listed twice", cases[0].case, message, dataset=cases[0].dataset)


def volumes_in(folder: Path, *, folders: bool = False) -> list[Path]:
    """Files with the ending of a volume in a folder, hidden ones left out, by name.

    Args:
        folders: also folders, which may hold DICOM slices.
    """
    found = []
    for path in sorted(folder.iterdir()):
        shown = not path.name.startswith(".")
        if (is_volume(path) and path.is_file()) or (folders and shown and path.is_dir()):
            found.append(path)
    return found


def seen_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder by name, but for those that cannot be read."""
    files: list[Path] = []
    folders: list[Path] = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            with suppress(OSError):
                mode = path.stat().st_mode
                if stat.S_ISDIR(mode):
                    folders.append(path)
                elif stat.S_ISREG(mode):
                    files.append(path)
    return files, folders


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        DatasetError: it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read ({error.strerror}); check its permissions.") from None
    except ValueError as error:  # also of text that is not UTF-8
        raise DatasetError(f"'{path}' is not JSON ({error}); mend it or write it again.") from None


def names_by_value(path: Path, labels: Any) -> dict[int, str]:
    """Return names by label value, from either direction of the mapping, without the background.

    Args:
        path: of the file that gives them, for messages.
        labels: {"1": "liver"}, {"liver": 1}, or {"whole": [1, 2], "core": 2}: a value that is in several
            regions is called by all of them.

    Raises:
        DatasetError: it is none of these.
    """
    wanted = 'names of labels must be like {"1": "liver"} or {"liver": 1}'
    if not isinstance(labels, Mapping):
        raise DatasetError(f"{path}: {wanted}; got {labels!r}.")
    regions: dict[int, list[str]] = {}
    for key, given in labels.items():
        if str(key).lstrip("-").isdigit() and isinstance(given, str):
            regions.setdefault(int(key), []).append(given)
            continue
        values = given if isinstance(given, list) else [given]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise DatasetError(f"{path}: {wanted}; got {key!r}: {given!r}.")
        for value in values:
            regions.setdefault(value, []).append(str(key))
    return {value: " + ".join(names) for value, names in sorted(regions.items()) if value != 0}


def names_beside(folder: Path) -> tuple[dict[int, str], list[Path]]:
    """Names of label values from a `labels.json` in a folder, and the files read for them.

    Raises:
        DatasetError: it does not give names.
    """
    path = folder / NAMES_FILE
    if not path.is_file():
        return {}, []
    return names_by_value(path, read_json(path)), [path]


def modality_of(text: Any) -> str:
    """Return DICOM's name of a modality if known, otherwise the given one."""
    given = str(text or "").strip()
    magnetic = ("MR", "MRI", "T1", "T1W", "T1GD", "T1CE", "T2", "T2W", "FLAIR", "ADC", "DWI")
    return "MR" if given.upper().replace("-", "").replace("_", "") in magnetic else given
