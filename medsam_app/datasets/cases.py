"""Labelled cases, and folders with a manifest of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from medsam_app.errors import SettingsError, VolumeError, invalid_fields, unknown_name
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.volume import Volume

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Paths and attributes of a volume with its label map.

    Attributes:
        dataset: name of the dataset.
        modality: DICOM modality ("CT", "MR", ...), empty if unknown.
        case: name of the case.
        names: names of the labels by value; a label without a name is called by its value.
        image: path of the volume.
        label: path of the label map.
        split: for example "train" or "dev", empty if unknown.
        channels: all images of a case with several; `image` is the first of them.
    """

    dataset: str
    modality: str
    case: str
    names: dict[int, str]
    image: Path
    label: Path
    split: str = ""
    channels: tuple[Path, ...] = ()

    def load(self) -> tuple[Volume, NDArray[np.integer]]:
        """Return the volume, and its (i, j, k) label map.

        Raises:
            MedsamError: a file cannot be read, or the grids differ.
        """
        volume = load_volume(self.image)
        return volume, load_mask(self.label, volume.grid)


class _Label(BaseModel):
    name: str


class _Entry(BaseModel):
    dataset: str
    case: str
    split: str
    modality: str
    image: str
    label: str
    labels: dict[int, _Label] = {}


class _Manifest(BaseModel):
    cases: list[_Entry]


def choose_cases(
    cases: Sequence[Case], *, split: str | None = None, datasets: Sequence[str] = (), most: int | None = None
) -> list[Case]:
    """Return a selection of the cases, dataset by dataset.

    Args:
        cases: the cases.
        split: split to select; None for all.
        datasets: names of the datasets to select; empty for all.
        most: largest number of cases per dataset, evenly spread; None for all.

    Raises:
        SettingsError: no case has that split or dataset, or `most` is below one.
    """
    if most is not None and (not isinstance(most, int) or most < 1):
        raise SettingsError(f"At least one case of a dataset is needed; got {most}.")
    for name in datasets:
        if name not in {case.dataset for case in cases}:
            raise SettingsError(unknown_name("dataset", name, {case.dataset for case in cases}))
    by_dataset: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if not datasets or case.dataset in datasets:
            by_dataset[case.dataset].append(case)
    splits = {case.split for group in by_dataset.values() for case in group}
    if split is not None and split not in splits:
        raise SettingsError(unknown_name("split", split, splits))
    chosen: list[Case] = []
    for group in by_dataset.values():
        in_split = [case for case in group if split in (None, case.split)]
        count = len(in_split) if most is None else min(most, len(in_split))
        if count:
            chosen += [
                in_split[index] for index in np.linspace(0, len(in_split) - 1, count).round().astype(int)
            ]
    return chosen


def list_cases(folder: Path, *, split: str, most: int | None = None) -> list[Case]:
    """Return the cases of one split of a folder with a `manifest.json`, dataset by dataset.

    Args:
        folder: folder of the manifest, to which its paths are relative.
        split: the split.
        most: largest number of cases per dataset, evenly spread; None for all.

    Raises:
        VolumeError: the manifest is missing or invalid.
        SettingsError: the split has no case, or `most` is below one.
    """
    listed = manifest_cases(folder)
    if not listed:
        raise SettingsError(f"{folder / MANIFEST} lists no cases; give a folder of labelled volumes.")
    return choose_cases(listed, split=split, most=most)


def manifest_cases(folder: Path) -> list[Case]:
    """Return all cases of a folder with a `manifest.json`, in the order of the manifest.

    Raises:
        VolumeError: the manifest is missing or invalid.
    """
    return [
        Case(
            dataset=entry.dataset,
            modality=entry.modality,
            case=entry.case,
            names={value: label.name for value, label in entry.labels.items()},
            image=folder / entry.image,
            label=folder / entry.label,
            split=entry.split,
        )
        for entry in _manifest(folder).cases
    ]


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise VolumeError(f"There is no {path}; give a folder of labelled volumes that has a {MANIFEST}.")
    try:
        return _Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except ValidationError as error:
        field = invalid_fields(error)[0]
        where = field.name or "the file"
        raise VolumeError(f"{path} is no manifest of labelled cases: {where}: {field.message}.") from None
