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

#: File with names of label values, for layouts that do not define one.
NAMES_FILE = "labels.json"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Problem of a dataset.

    Attributes:
        severity: "error" if the case cannot be used, otherwise "warning".
        kind: short title, equal for problems of the same kind.
        dataset, case: names of the dataset and the case; `case` is empty if it concerns the whole dataset.
        message: cause, actual and expected value, and remedy.
        split: split of the case, empty if unknown.
    """

    severity: Literal["error", "warning"]
    kind: str
    dataset: str
    case: str
    message: str
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled cases of a folder or list; no volume has been read.

    Attributes:
        path: folder or list.
        layout: description of the layout.
        cases: cases whose image and label map exist.
        problems: problems found without reading volumes.
        names_in: place where names of label values are given.
        sources: files that were read to find the cases.
    """

    path: Path
    layout: str
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    names_in: str
    sources: tuple[Path, ...] = ()


@dataclass
class CaseCollector:
    """Collector of cases and problems while a layout is read.

    Attributes:
        name: name of the dataset.
        names: names of label values.
        modality: modality of the images, empty if unknown.
        cases: cases found so far.
        problems: problems found so far.
    """

    name: str
    names: dict[int, str] = field(default_factory=dict)
    modality: str = ""
    cases: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def error(
        self, kind: str, case: str, message: str, *, dataset: str | None = None, split: str = ""
    ) -> None:
        """Record an error: the case cannot be used."""
        self._record("error", kind, case, message, dataset, split)

    def warning(self, kind: str, case: str, message: str, *, dataset: str | None = None) -> None:
        """Record a warning."""
        self._record("warning", kind, case, message, dataset)

    def _record(
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
        """Add a case of this dataset, or a problem if one of its files is missing."""
        self.add_case(
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

    def add_case(self, case: Case) -> None:
        """Add a case unchanged, or a problem if one of its files is missing."""
        files = {"image": case.image, "label map": case.label}
        missing = {role: path for role, path in files.items() if not exists(path)}
        for role, path in missing.items():
            message = (
                f"The {role} {path} is listed but not there; put it there, or take the case off the list."
            )
            self.error(f"{role} missing", case.case, message, dataset=case.dataset, split=case.split)
        if not missing:
            self.cases.append(case)

    def no_label(self, case: str, image: Path, expected: str) -> None:
        """Record an image without a label map; `expected` is the missing path."""
        message = f"The image {image} has no label map; put it at {expected}, or move the image away."
        self.error("label map missing", case, message)

    def no_image(self, case: str, label: Path, expected: str) -> None:
        """Record a label map without an image; `expected` is the missing path."""
        message = f"The label map {label} has no image; put it at {expected}, or move the label map away."
        self.error("image missing", case, message)

    def finish(self, path: Path, layout: str, *, names_in: str, sources: Iterable[Path] = ()) -> Dataset:
        """Return the dataset, with problems for repeated entries."""
        _warn_of_duplicates(self)
        return Dataset(
            path=path,
            layout=layout,
            cases=tuple(self.cases),
            problems=tuple(self.problems),
            names_in=names_in,
            sources=tuple(sources),
        )


def _warn_of_duplicates(collector: CaseCollector) -> None:
    """Record warnings for names and for images that occur in several cases."""
    by_name: dict[tuple[str, str], list[Case]] = {}
    by_image: dict[Path, list[Case]] = {}
    for case in collector.cases:
        by_name.setdefault((case.dataset, case.case), []).append(case)
        by_image.setdefault(case.image.resolve(), []).append(case)
    for image, cases in by_image.items():
        if len(cases) > 1:
            names = ", ".join(dict.fromkeys(case.case for case in cases))
            message = f"The image {image} is listed {len(cases)} times ({names}); keep one of them."
            collector.warning("listed twice", cases[0].case, message, dataset=cases[0].dataset)
    for (_, name), cases in by_name.items():
        if len({case.image.resolve() for case in cases}) > 1:
            message = f"{len(cases)} cases are called '{name}'; give each a name of its own."
            collector.warning("listed twice", cases[0].case, message, dataset=cases[0].dataset)


def volumes_in(folder: Path, *, folders: bool = False) -> list[Path]:
    """Return the volume files in a folder by name, without hidden ones.

    Args:
        folder: the folder.
        folders: also return subfolders, which may hold DICOM slices.
    """
    paths = []
    for path in sorted(folder.iterdir()):
        visible = not path.name.startswith(".")
        if (is_volume(path) and path.is_file()) or (folders and visible and path.is_dir()):
            paths.append(path)
    return paths


def readable_entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and the folders in a folder by name, without those that cannot be read."""
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
        DatasetError: the file cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read ({error.strerror}); check its permissions.") from None
    except ValueError as error:  # also for text that is not UTF-8
        raise DatasetError(f"'{path}' is not JSON ({error}); mend it or write it again.") from None


def names_by_value(path: Path, labels: Any) -> dict[int, str]:
    """Return names by label value, from either direction of the mapping, without the background.

    Args:
        path: path of the file with the names, for messages.
        labels: {"1": "liver"}, {"liver": 1}, or {"whole": [1, 2], "core": 2}. A value of several regions gets
            the names of all of them.

    Raises:
        DatasetError: `labels` has another form.
    """
    expected = 'names of labels must be like {"1": "liver"} or {"liver": 1}'
    if not isinstance(labels, Mapping):
        raise DatasetError(f"{path}: {expected}; got {labels!r}.")
    regions: dict[int, list[str]] = {}
    for key, value_or_name in labels.items():
        if str(key).lstrip("-").isdigit() and isinstance(value_or_name, str):
            regions.setdefault(int(key), []).append(value_or_name)
            continue
        values = value_or_name if isinstance(value_or_name, list) else [value_or_name]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise DatasetError(f"{path}: {expected}; got {key!r}: {value_or_name!r}.")
        for value in values:
            regions.setdefault(value, []).append(str(key))
    return {value: " + ".join(names) for value, names in sorted(regions.items()) if value != 0}


def names_in_folder(folder: Path) -> tuple[dict[int, str], list[Path]]:
    """Return names of label values from a `labels.json` in a folder, and the list of files read.

    Raises:
        DatasetError: the file does not hold names.
    """
    path = folder / NAMES_FILE
    if not path.is_file():
        return {}, []
    return names_by_value(path, read_json(path)), [path]


def modality_of(text: Any) -> str:
    """Return the DICOM modality of a name if known, otherwise the name itself."""
    name = str(text or "").strip()
    magnetic = ("MR", "MRI", "T1", "T1W", "T1GD", "T1CE", "T2", "T2W", "FLAIR", "ADC", "DWI")
    return "MR" if name.upper().replace("-", "").replace("_", "") in magnetic else name
