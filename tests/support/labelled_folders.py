"""Small labelled volumes in common folder layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

SHAPE = (12, 10, 8)
#: Oblique affine; axes to the right, anterior and inferior.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array([[-0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, -1]]).T @ np.diag([1.0, 2.0, 3.0])
OBLIQUE[:3, 3] = (11, -7, 40)
#: Affine with axes to the left and posterior.
FLIPPED = np.diag([-1.0, -1.5, 2.0, 1.0])


def image(seed: int) -> NDArray[np.int16]:
    """Return (i, j, k) noise that is bright inside `labels`."""
    noise = np.random.default_rng(seed).normal(size=SHAPE) * 20
    return (noise + np.choose(labels(), [0, 300, 500])).astype(np.int16)


def labels() -> NDArray[np.uint8]:
    """Return an (i, j, k) label map with 144 voxels of 1 and 120 of 2."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[1:5, 1:7, 1:7] = 1
    array[6:11, 2:8, 2:6] = 2
    return array


def save(path: Path, array: NDArray, affine: ArrayLike = OBLIQUE) -> Path:
    """Write a NIfTI file and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.asarray(affine)), path)
    return path


def save_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def decathlon(folder: Path, *, cases: int = 2) -> Path:
    """Write a folder of the Medical Segmentation Decathlon, with the hidden files of macOS archives."""
    for n in range(cases):
        save(folder / f"imagesTr/lump_{n}.nii.gz", image(n))
        save(folder / f"labelsTr/lump_{n}.nii.gz", labels())
        (folder / f"imagesTr/._lump_{n}.nii.gz").write_bytes(b"rubbish")
    save(folder / "imagesTs/lump_9.nii.gz", image(9))
    entries = [{key: f"./{key}sTr/lump_{n}.nii.gz" for key in ("image", "label")} for n in range(cases)]
    named = {"0": "background", "1": "left lump", "2": "right lump"}
    described = {"name": "Lumps", "modality": {"0": "MRI"}, "labels": named, "training": entries}
    save_json(folder / "dataset.json", described | {"test": ["./imagesTs/lump_9.nii.gz"]})
    return folder


def nnunet(folder: Path, *, channels: int = 2) -> Path:
    """Write a folder of nnU-Net v2 with two cases."""
    for case in ("lump_0001", "lump_0002"):
        for channel in range(channels):
            save(folder / f"imagesTr/{case}_{channel:04d}.nii.gz", image(int(case[-1]) + 10 * channel))
        save(folder / f"labelsTr/{case}.nii.gz", labels())
    names = {str(channel): name for channel, name in zip(range(channels), ("T1", "T2"), strict=False)}
    described = {
        "channel_names": names,
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "file_ending": ".nii.gz",
        "numTraining": 2,
    }
    save_json(folder / "dataset.json", described)
    return folder


def example(folder: Path) -> Path:
    """Write the dataset of `docs/datasets.md`: five cases of nnU-Net v2, three of them usable."""
    nnunet(folder, channels=1)
    (folder / "dataset.json").unlink()
    for n in (3, 4, 5):
        save(folder / f"imagesTr/lump_000{n}_0000.nii.gz", image(n))
    save(folder / "labelsTr/lump_0003.nii.gz", labels(), FLIPPED)
    drawn = labels()
    drawn[0, 0, :3] = 3
    save(folder / "labelsTr/lump_0004.nii.gz", drawn)
    named = {"background": 0, "left lump": 1, "right lump": 2}
    described = {"name": "Lumps", "channel_names": {"0": "CT"}, "labels": named, "file_ending": ".nii.gz"}
    save_json(folder / "dataset.json", described | {"numTraining": 5})
    return folder
