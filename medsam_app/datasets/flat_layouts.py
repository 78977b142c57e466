"""Layouts that a file describes: manifest.json, dataset.json of two kinds, a CSV or JSON list."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_app.datasets.cases import MANIFEST, manifest_cases
from medsam_app.datasets.folder_layouts import say_channels
from medsam_app.datasets.gathering import (
    NAMES_FILE,
    Dataset,
    Gathering,
    modality_of,
    names_beside,
    names_by_value,
    read_json,
    volumes_in,
)
from medsam_app.errors import DatasetError
from medsam_app.io.csv_columns import read_table
from medsam_app.io.formats import stem
from medsam_app.io.paths import exists

DATASET = "dataset.json"


def manifest(folder: Path) -> Dataset:
    """A folder with a manifest.json, all splits."""
    found = Gathering(folder.resolve().name)
    for case in manifest_cases(folder):
        found.take(case)
    path = folder / MANIFEST
    return found.finish(
        folder, f"folder with a {MANIFEST}", names_in=f"'labels' of the case in {path}", sources=[path]
    )


def dataset_json(folder: Path) -> Dataset:
    """A folder with a dataset.json of the Medical Segmentation Decathlon or of nnU-Net v2.

    Raises:
        DatasetError: it is neither.
    """
    path = folder / DATASET
    described = read_json(path)
    if isinstance(described, Mapping):
        if "channel_names" in described and "labels" in described:
            return _nnunet(folder, path, described)
        if isinstance(described.get("training"), list):
            return _decathlon(folder, path, described)
    raise DatasetError(
        f"{path} is of no known kind: the Medical Segmentation Decathlon has a list 'training' in it, "
        "nnU-Net v2 'channel_names' and 'labels'; give a folder with one of them."
    )


def _decathlon(folder: Path, path: Path, described: Mapping[str, Any]) -> Dataset:
    channels = described.get("modality") or {}
    found = Gathering(
        str(described.get("name") or folder.resolve().name),
        names_by_value(path, described.get("labels") or {}),
        modality_of(channels.get("0")) if isinstance(channels, Mapping) else modality_of(channels),
    )
    listed: set[Path] = set()
    for number, entry in enumerate(described["training"]):
        files = [entry.get(key) for key in ("image", "label")] if isinstance(entry, Mapping) else [None]
        if not all(isinstance(file, str) for file in files):
            message = f"Entry {number} of 'training' in {path} is {entry!r}; 'image' and 'label' are wanted."
            found.error("entry", f"training {number}", message)
            continue
        image, label = (folder / str(file) for file in files)
        first = image.parent / f"{stem(image)}_0000.nii.gz"
        if not exists(image) and exists(first):  # nnU-Net v1 lists the cases and not their channels
            image = first
        listed |= {file.resolve() for file in (image, label) if exists(file)}
        found.add(stem(label), image, label)
    for beside in (folder / "imagesTr", folder / "labelsTr"):
        for file in volumes_in(beside) if beside.is_dir() else []:
            if file.resolve() not in listed:
                message = (
                    f"{file} is not part of a case in {path}; list it under 'training', or move it away."
                )
                found.warning("not listed", stem(file), message)
    return found.finish(
        folder, "Medical Segmentation Decathlon", names_in=f"'labels' in {path}", sources=[path]
    )


def _nnunet(folder: Path, path: Path, described: Mapping[str, Any]) -> Dataset:
    named = described["channel_names"]
    if not isinstance(named, Mapping) or not named:
        raise DatasetError(f'{path}: "channel_names" must be like {{"0": "CT"}}; got {named!r}.')
    channels = [str(name) for name in named.values()]
    found = Gathering(
        str(described.get("name") or folder.resolve().name),
        names_by_value(path, described["labels"]),
        modality_of(channels[0]),
    )
    ending = str(described.get("file_ending", ".nii.gz"))
    images: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in _with_ending(folder / "imagesTr", ending):
        parts = re.fullmatch(r"(.+)_(\d{4})", file.name.removesuffix(ending))
        if parts is None:
            wanted = f"{file.name.removesuffix(ending)}_0000{ending}"
            found.error("name", stem(file), f"The image {file} has no channel number; call it {wanted}.")
        else:
            images[parts[1]][int(parts[2])] = file
    labels = {file.name.removesuffix(ending): file for file in _with_ending(folder / "labelsTr", ending)}
    for case in sorted(images.keys() | labels.keys()):
        first, label = folder / "imagesTr" / f"{case}_0000{ending}", folder / "labelsTr" / f"{case}{ending}"
        if case not in labels:
            found.no_label(case, min(images[case].values()), str(label))
        elif 0 not in images[case]:
            found.no_image(case, label, str(first))
        else:
            found.add(case, first, label, channels=_channels(found, case, images[case], len(channels)))
    say_channels(found, channels)
    return found.finish(folder, "nnU-Net v2 raw folder", names_in=f"'labels' in {path}", sources=[path])


def _channels(found: Gathering, case: str, images: dict[int, Path], count: int) -> list[Path]:
    """Return the images of a case in order; missing ones become problems."""
    missing = [f"_{number:04d}" for number in range(count) if number not in images]
    if missing:
        message = f"The case has no image {', '.join(missing)}, though {count} channels are named; add it."
        found.warning("channel missing", case, message)
    return [images[number] for number in sorted(images)] if len(images) > 1 else []


def _with_ending(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith(".")
    )


def case_list(path: Path) -> Dataset:
    """A CSV or JSON list of cases, with paths relative to it.

    Raises:
        DatasetError: it cannot be read, or no column gives images or label maps.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    names, sources = names_beside(path.parent)
    found = Gathering(path.stem, names)
    for number, row in rows:
        values = {key: str(row.get(key) or "").strip() for key in ("image", "label", "case", "split")}
        case = values["case"] or (stem(Path(values["image"] or values["label"])) or f"line {number}")
        image, label = path.parent / values["image"], path.parent / values["label"]
        if values["image"] and values["label"]:
            found.add(case, image, label, split=values["split"])
        elif values["image"]:
            found.no_label(case, image, f"'label' in line {number} of {path}")
        elif values["label"]:
            found.no_image(case, label, f"'image' in line {number} of {path}")
        else:
            found.error(
                "entry",
                case,
                f"Line {number} of {path} gives no image and no label; fill it in or delete it.",
            )
    kind = "CSV list" if path.suffix.lower() == ".csv" else "JSON list"
    return found.finish(path, kind, names_in=str(path.parent / NAMES_FILE), sources=[path, *sources])


def _csv_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows by lower-case column and the number of their line."""
    columns, rows = read_table(path, error=DatasetError)
    missing = [column for column in ("image", "label") if column not in columns]
    if missing:
        raise DatasetError(
            f"'{path}' has no column '{missing[0]}' (its columns: {', '.join(columns) or 'none'}); wanted "
            "are image and label, and case and split where there are any."
        )
    return rows


def _json_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Objects and their number from 1."""
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(row, Mapping) for row in listed):
        raise DatasetError(
            f"{path} is not a list of cases; give a list of objects with image and label, and case and split "
            "where there are any."
        )
    return list(enumerate(listed, start=1))
