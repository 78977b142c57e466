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
    """A volume with its label map, not read yet.

    Attributes:
        modality: as DICOM names it ("CT", "MR", ...), empty where nothing says so.
        names: of the labels, by value; a label without one is called by its value.
        split: such as "train" or "dev", empty where nothing says so.
        channels: every image of the case where there are several; `image` is the first.
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
        """The volume, and (i, j, k) labels on its grid.

        Raises:
            MedsamError: either cannot be read, or they lie on different grids.
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
    """Some of the cases, dataset by dataset.

    Args:
        split: those of this split; None for all.
        datasets: those of these datasets; none named for all.
        most: at most this many per dataset, evenly spread over its cases.

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
        wanted = [case for case in group if split in (None, case.split)]
        keep = len(wanted) if most is None else min(most, len(wanted))
        if keep:
            chosen += [wanted[index] for index in np.linspace(0, len(wanted) - 1, keep).round().astype(int)]
    return chosen


def list_cases(folder: Path, *, split: str, most: int | None = None) -> list[Case]:
    """The cases of one split of a folder with a `manifest.json`, dataset by dataset.

    Args:
        folder: paths in the manifest start here.
        split: which cases.
        most: at most this many per dataset, evenly spread over its cases.

    Raises:
        VolumeError: no manifest, or one that does not say what is needed.
        SettingsError: the split has no case, or `most` is below one.
    """
    listed = manifest_cases(folder)
    if not listed:
        raise SettingsError(f"{folder / MANIFEST} lists no cases; give a folder of labelled volumes.")
    return choose_cases(listed, split=split, most=most)


def manifest_cases(folder: Path) -> list[Case]:
    """Every case of a folder with a `manifest.json`, in its order.

    Raises:
        VolumeError: no manifest, or one that does not say what is needed.
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
