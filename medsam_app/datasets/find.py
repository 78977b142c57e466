"""Search for labelled cases in a folder or list, in any known layout.

    dataset = find_cases("Task04_Hippocampus")
    dataset.layout  # 'Medical Segmentation Decathlon'
    volume, labels = dataset.cases[0].load()

This module reads no volumes; `medsam_app.datasets.fingerprint` does.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from medsam_app.datasets.cases import MANIFEST
from medsam_app.datasets.flat_layouts import DATASET, case_list, dataset_json, manifest
from medsam_app.datasets.folder_layouts import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    label_maps_in,
    sibling_folders,
    suffix_pairs,
)
from medsam_app.datasets.gathering import Dataset, Problem
from medsam_app.errors import DatasetError, MedsamError
from medsam_app.io.formats import READABLE
from medsam_app.io.paths import walk_folders

__all__ = ["Dataset", "Problem", "find_cases", "label_files"]


def find_cases(path: str | Path) -> Dataset:
    """Return the labelled cases of a folder or list, and problems visible from file names.

    Supported layouts, in the order of their search: a folder with a manifest.json; a folder with a
    dataset.json of the Medical Segmentation Decathlon or of nnU-Net v2; two parallel folders whose files have
    matching names; pairs of files in one folder, distinguished by the endings of their names; a CSV or JSON
    list of cases.

    Raises:
        DatasetError: the path does not exist or has no known layout; the message lists the layouts.
        VolumeError: a manifest.json is invalid.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DatasetError(f"There is no file or folder '{path}'; check the path.")
    try:
        return _find(path)
    except PermissionError as error:
        raise DatasetError(
            f"{error.filename} may not be read by this user; change its permissions."
        ) from None


def label_files(folder: Path) -> set[Path]:
    """Return the label maps under a folder that belong to an image.

    They are recognised by their names, or listed in a manifest.json or dataset.json. Label maps without an
    image, and files that cannot be read, are not included.
    """
    labels: set[Path] = set()
    for parent in walk_folders(folder):
        labels.update(label_maps_in(parent))
        with suppress(MedsamError, OSError):  # ignore lists that are invalid or cannot be read
            if any((parent / name).is_file() for name in (MANIFEST, DATASET)):
                labels.update(case.label for case in find_cases(parent).cases)
    return {path.resolve() for path in labels}


def _find(path: Path) -> Dataset:
    if path.is_file():
        if path.name in (MANIFEST, DATASET):
            return find_cases(path.parent)
        if path.suffix.lower() in (".csv", ".json"):
            return _not_empty(case_list(path))
        raise DatasetError(f"'{path}' is no list of cases; give a folder, or a .csv or .json file.")
    if (path / MANIFEST).is_file():
        return _not_empty(manifest(path))
    if (path / DATASET).is_file():
        return _not_empty(dataset_json(path))
    dataset = sibling_folders(path) or suffix_pairs(path)
    if dataset is None:
        raise DatasetError(_unknown_layout(path))
    return dataset


def _not_empty(dataset: Dataset) -> Dataset:
    """Return the dataset; raise `DatasetError` if it is empty."""
    if not dataset.cases and not dataset.problems:
        raise DatasetError(f"{dataset.path} was read as {dataset.layout}, but lists no case; list some.")
    return dataset


def _unknown_layout(folder: Path) -> str:
    images, labels = ", ".join(IMAGE_FOLDERS), ", ".join(LABEL_FOLDERS)
    return (
        f"No labelled cases were found in {folder}. Looked for: {MANIFEST}; {DATASET}; a folder of images "
        f"(one of {images}) beside one of label maps (one of {labels}) that are not empty; files such as "
        "x_image.nii.gz with x_label.nii.gz, or x.nii.gz with x_seg.nii.gz. Volumes are "
        f"{READABLE}. Arrange the files in one of these ways, or list them in a CSV file with the columns "
        "image and label."
    )
