"""A small folder of labelled phantoms with a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (40, 36, 20)
SPACING = (1.0, 1.0, 2.0)


def ball(centre: tuple[float, ...], radius: float) -> NDArray[np.bool_]:
    """Return the voxels within a radius in mm of a point in mm."""
    axes = [np.arange(n) * mm - c for n, mm, c in zip(SHAPE, SPACING, centre, strict=True)]
    return sum(np.meshgrid(*[a**2 for a in axes], indexing="ij")) < radius**2


def two_balls(seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """Return image, labels and an oblique affine: two bright balls and a speck of 8 voxels in noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[ball((12, 18, 20), 8)] = 1
    labels[ball((29, 18, 20), 6)] = 2
    labels[0:2, 0:2, 0:2] = 3
    image = np.choose(labels, [0, 300, 500, 900]) + rng.normal(size=SHAPE) * 20
    turn = np.array([[0.9, -0.43589, 0.0], [0.43589, 0.9, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.0, 2.0])
    return image.astype(np.int16), labels, affine


def write_folder(folder: Path, *, cases: int = 2, broken: bool = False) -> Path:
    """Write a dataset 'balls' (CT) with `cases` cases and 'one' (MR) with one, both with split 'dev'.

    Args:
        folder: created by this function.
        cases: number of cases of 'balls'.
        broken: whether to truncate the first image of 'balls'.
    """
    folder.mkdir()
    entries = []
    rows = [("balls", "CT", f"case{n}", n) for n in range(cases)] + [("one", "MR", "only", 9)]
    for dataset, modality, case, seed in rows:
        image, labels, affine = two_balls(seed)
        files = {"image": f"{dataset}_{case}.nii.gz", "label": f"{dataset}_{case}_labels.nii.gz"}
        nib.save(nib.Nifti1Image(image, affine), folder / files["image"])
        nib.save(nib.Nifti1Image(labels, affine), folder / files["label"])
        entry = {"dataset": dataset, "modality": modality, "case": case, "split": "dev"}
        entries.append(entry | files | {"labels": {"1": {"name": "larger ball"}}})
    if broken:
        first = folder / "balls_case0.nii.gz"
        first.write_bytes(first.read_bytes()[:100])
    (folder / "manifest.json").write_text(json.dumps({"cases": entries}))
    return folder
