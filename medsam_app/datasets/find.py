"""Labelled cases of a folder or list, in any known layout.

    dataset = find_cases("Task04_Hippocampus")
    dataset.layout  # 'Medical Segmentation Decathlon'
    volume, labels = dataset.cases[0].load()

No volume is read here; `medsam_app.datasets.fingerprint` does that.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from medsam_app.datasets.cases import MANIFEST
from medsam_app.datasets.flat_layouts import DATASET, case_list, dataset_json, manifest
from medsam_app.datasets.folder_layouts import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    labels_beside,
    sibling_folders,
    suffix_pairs,
)
from medsam_app.datasets.gathering import Dataset, Problem
from medsam_app.errors import DatasetError, MedsamError
from medsam_app.io.formats import READABLE
from medsam_app.io.paths import walk_folders

__all__ = ["Dataset", "Problem", "find_cases", "label_files"]


def find_cases(path: str | Path) -> Dataset:
    """Return the labelled cases of a folder or list, and problems visible from names.

    Understood are, in this order, a folder with a manifest.json, one with a dataset.json of the Medical
    Segmentation Decathlon or of nnU-Net v2, two folders side by side matched by file name, pairs in one
    folder that endings of their names distinguish, and a CSV or JSON list of cases.

    Raises:
        DatasetError: there is nothing at the path, or it is none of these; the message says what was looked
            for.
        VolumeError: a manifest.json that does not say what is needed.
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
    found: set[Path] = set()
    for place in walk_folders(folder):
        found.update(labels_beside(place))
        with suppress(MedsamError, OSError):  # one that describes nothing, or cannot be read, hides nothing
            if any((place / name).is_file() for name in (MANIFEST, DATASET)):
                found.update(case.label for case in find_cases(place).cases)
    return {path.resolve() for path in found}


def _find(path: Path) -> Dataset:
    if path.is_file():
        if path.name in (MANIFEST, DATASET):
            return find_cases(path.parent)
        if path.suffix.lower() in (".csv", ".json"):
            return _some(case_list(path))
        raise DatasetError(f"'{path}' is no list of cases; give a folder, or a .csv or .json file.")
    if (path / MANIFEST).is_file():
        return _some(manifest(path))
    if (path / DATASET).is_file():
        return _some(dataset_json(path))
    found = sibling_folders(path) or suffix_pairs(path)
    if found is None:
        raise DatasetError(_not_understood(path))
    return found


def _some(dataset: Dataset) -> Dataset:
    """The dataset, unless it is empty."""
    if not dataset.cases and not dataset.problems:
        raise DatasetError(f"{dataset.path} was read as {dataset.layout}, but lists no case; list some.")
    return dataset


def _not_understood(folder: Path) -> str:
    images, labels = ", ".join(IMAGE_FOLDERS), ", ".join(LABEL_FOLDERS)
    return (
        f"No labelled cases were found in {folder}. Looked for: {MANIFEST}; {DATASET}; a folder of images "
        f"(one of {images}) beside one of label maps (one of {labels}) that are not empty; files such as "
        "x_image.nii.gz with x_label.nii.gz, or x.nii.gz with x_seg.nii.gz. Volumes are "
        f"{READABLE}. Arrange the files in one of these ways, or list them in a CSV file with the columns "
        "image and label."
    )
