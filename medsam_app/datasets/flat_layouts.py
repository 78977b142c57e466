"""Layouts described by a file: manifest.json, dataset.json, CSV or JSON list."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsam_app.datasets.cases import MANIFEST, manifest_cases
from medsam_app.datasets.folder_layouts import warn_of_channels
from medsam_app.datasets.gathering import (
    NAMES_FILE,
    CaseCollector,
    Dataset,
    modality_of,
    names_by_value,
    names_in_folder,
    read_json,
    volumes_in,
)
from medsam_app.errors import DatasetError
from medsam_app.io.csv_columns import read_table
from medsam_app.io.formats import stem
from medsam_app.io.paths import exists

DATASET = "dataset.json"


def manifest(folder: Path) -> Dataset:
    """Return all cases of a folder with a manifest.json."""
    collector = CaseCollector(folder.resolve().name)
    for case in manifest_cases(folder):
        collector.add_case(case)
    path = folder / MANIFEST
    return collector.finish(
        folder, f"folder with a {MANIFEST}", names_in=f"'labels' of the case in {path}", sources=[path]
    )


def dataset_json(folder: Path) -> Dataset:
    """Return the cases of a folder with a dataset.json of the Medical Segmentation Decathlon or nnU-Net v2.

    Raises:
        DatasetError: the file is of neither kind.
    """
    path = folder / DATASET
    description = read_json(path)
    if isinstance(description, Mapping):
        if "channel_names" in description and "labels" in description:
            return _nnunet(folder, path, description)
        if isinstance(description.get("training"), list):
            return _decathlon(folder, path, description)
    raise DatasetError(
        f"{path} is of no known kind: the Medical Segmentation Decathlon has a list 'training' in it, "
        "nnU-Net v2 'channel_names' and 'labels'; give a folder with one of them."
    )


def _decathlon(folder: Path, path: Path, description: Mapping[str, Any]) -> Dataset:
    channels = description.get("modality") or {}
    collector = CaseCollector(
        str(description.get("name") or folder.resolve().name),
        names_by_value(path, description.get("labels") or {}),
        modality_of(channels.get("0")) if isinstance(channels, Mapping) else modality_of(channels),
    )
    listed: set[Path] = set()
    for number, entry in enumerate(description["training"]):
        files = [entry.get(key) for key in ("image", "label")] if isinstance(entry, Mapping) else [None]
        if not all(isinstance(file, str) for file in files):
            message = f"Entry {number} of 'training' in {path} is {entry!r}; 'image' and 'label' are wanted."
            collector.error("entry", f"training {number}", message)
            continue
        image, label = (folder / str(file) for file in files)
        first = image.parent / f"{stem(image)}_0000.nii.gz"
        if not exists(image) and exists(first):  # nnU-Net v1 lists cases without channel numbers
            image = first
        listed |= {file.resolve() for file in (image, label) if exists(file)}
        collector.add(stem(label), image, label)
    for parent in (folder / "imagesTr", folder / "labelsTr"):
        for file in volumes_in(parent) if parent.is_dir() else []:
            if file.resolve() not in listed:
                message = (
                    f"{file} is not part of a case in {path}; list it under 'training', or move it away."
                )
                collector.warning("not listed", stem(file), message)
    return collector.finish(
        folder, "Medical Segmentation Decathlon", names_in=f"'labels' in {path}", sources=[path]
    )


def _nnunet(folder: Path, path: Path, description: Mapping[str, Any]) -> Dataset:
    named = description["channel_names"]
    if not isinstance(named, Mapping) or not named:
        raise DatasetError(f'{path}: "channel_names" must be like {{"0": "CT"}}; got {named!r}.')
    channels = [str(name) for name in named.values()]
    collector = CaseCollector(
        str(description.get("name") or folder.resolve().name),
        names_by_value(path, description["labels"]),
        modality_of(channels[0]),
    )
    ending = str(description.get("file_ending", ".nii.gz"))
    images: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in _with_ending(folder / "imagesTr", ending):
        parts = re.fullmatch(r"(.+)_(\d{4})", file.name.removesuffix(ending))
        if parts is None:
            expected = f"{file.name.removesuffix(ending)}_0000{ending}"
            collector.error(
                "name", stem(file), f"The image {file} has no channel number; call it {expected}."
            )
        else:
            images[parts[1]][int(parts[2])] = file
    labels = {file.name.removesuffix(ending): file for file in _with_ending(folder / "labelsTr", ending)}
    for case in sorted(images.keys() | labels.keys()):
        first, label = folder / "imagesTr" / f"{case}_0000{ending}", folder / "labelsTr" / f"{case}{ending}"
        if case not in labels:
            collector.no_label(case, min(images[case].values()), str(label))
        elif 0 not in images[case]:
            collector.no_image(case, label, str(first))
        else:
            collector.add(
                case, first, label, channels=_channels(collector, case, images[case], len(channels))
            )
    warn_of_channels(collector, channels)
    return collector.finish(folder, "nnU-Net v2 raw folder", names_in=f"'labels' in {path}", sources=[path])


def _channels(collector: CaseCollector, case: str, images: dict[int, Path], count: int) -> list[Path]:
    """Return the images of a case in order; missing ones become problems."""
    missing = [f"_{number:04d}" for number in range(count) if number not in images]
    if missing:
        message = f"The case has no image {', '.join(missing)}, though {count} channels are named; add it."
        collector.warning("channel missing", case, message)
    return [images[number] for number in sorted(images)] if len(images) > 1 else []


def _with_ending(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith(".")
    )


def case_list(path: Path) -> Dataset:
    """Return the cases of a CSV or JSON list, whose paths are relative to its folder.

    Raises:
        DatasetError: the list cannot be read, or a column for images or label maps is missing.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    names, sources = names_in_folder(path.parent)
    collector = CaseCollector(path.stem, names)
    for number, row in rows:
        values = {key: str(row.get(key) or "").strip() for key in ("image", "label", "case", "split")}
        case = values["case"] or (stem(Path(values["image"] or values["label"])) or f"line {number}")
        image, label = path.parent / values["image"], path.parent / values["label"]
        if values["image"] and values["label"]:
            collector.add(case, image, label, split=values["split"])
        elif values["image"]:
            collector.no_label(case, image, f"'label' in line {number} of {path}")
        elif values["label"]:
            collector.no_image(case, label, f"'image' in line {number} of {path}")
        else:
            collector.error(
                "entry",
                case,
                f"Line {number} of {path} gives no image and no label; fill it in or delete it.",
            )
    kind = "CSV list" if path.suffix.lower() == ".csv" else "JSON list"
    return collector.finish(path, kind, names_in=str(path.parent / NAMES_FILE), sources=[path, *sources])


def _csv_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the rows by column name in lower case, with their line numbers."""
    columns, rows = read_table(path, error=DatasetError)
    missing = [column for column in ("image", "label") if column not in columns]
    if missing:
        raise DatasetError(
            f"'{path}' has no column '{missing[0]}' (its columns: {', '.join(columns) or 'none'}); wanted "
            "are image and label, and case and split where there are any."
        )
    return rows


def _json_rows(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the objects of a list, numbered from 1."""
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(row, Mapping) for row in listed):
        raise DatasetError(
            f"{path} is not a list of cases; give a list of objects with image and label, and case and split "
            "where there are any."
        )
    return list(enumerate(listed, start=1))
