"""DICOM series of every kind for segmentations, and label maps for them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from pydicom.uid import EnhancedMRImageStorage

from medsam_app.io.loading import load_volume
from medsam_app.io.volume import Volume
from tests.support.dicom_enhanced import write_enhanced
from tests.support.dicom_files import AXIAL, write_series, write_slice

VOXELS = np.random.default_rng(0).integers(0, 3000, (7, 6, 5)).astype(np.uint16)
PLACE = {"FrameOfReferenceUID": "1.2.3.7"}
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def labels_for(shape: tuple[int, ...], count: int = 3, seed: int = 1) -> np.ndarray:
    """Return a label map in which all slices and labels differ, and one slice is empty."""
    labels = np.random.default_rng(seed).integers(0, count + 1, shape).astype(np.uint8)
    labels[:, :, 1] = 0
    labels[:, :, 3][labels[:, :, 3] == 2] = 0
    return labels


def series(folder: Path, orientation=AXIAL, order=range(5), **tags) -> Volume:
    write_series(
        folder, VOXELS[:, :, list(order)], distances=[3.0 * k for k in order], orientation=orientation,
        spacing=(0.8, 0.5), **PLACE, **tags,
    )  # fmt: skip
    return load_volume(folder)


def tilted(folder: Path) -> Volume:
    folder.mkdir()
    for k in range(5):
        place = (-3.5, 0.7 * k - 8, 2 * k + 4)
        write_slice(folder / f"{k}.dcm", VOXELS[:, :, k].T, position=place, series="1.2", number=k, **PLACE)
    return load_volume(folder)


def uneven(folder: Path) -> Volume:
    """Write slices as far off the grid as the loader accepts."""
    write_series(folder, VOXELS, distances=[0, 3.1, 6.0, 9.1, 12], **PLACE)
    return load_volume(folder)


def dynamic(folder: Path) -> Volume:
    for time in range(3):
        write_series(folder, VOXELS + time, first=5 * time, AcquisitionNumber=time, **PLACE)
    return load_volume(folder, frame=1)


def second_series(folder: Path) -> Volume:
    write_series(folder, VOXELS + 9, series="1.2.3.4", **PLACE)
    write_series(folder, VOXELS, series="1.2.3.5", first=9, orientation=OBLIQUE, **PLACE)
    return load_volume(folder, series="2")


def packed(folder: Path) -> Volume:
    series(folder)
    with zipfile.ZipFile(folder.parent / "series.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return load_volume(folder.parent / "series.zip")


def enhanced(folder: Path) -> Volume:
    folder.mkdir()
    order = [3, 0, 4, 1, 2]
    write_enhanced(
        folder / "one.dcm", VOXELS[:, :, order], places=[3.0 * k for k in order], orientation=OBLIQUE, **PLACE
    )
    return load_volume(folder / "one.dcm")


def enhanced_dynamic(folder: Path) -> Volume:
    folder.mkdir()
    both = np.concatenate([VOXELS + 5, VOXELS], axis=2)
    write_enhanced(
        folder / "one.dcm", both, places=[2.0 * k for k in (0, 1, 2, 3, 4)] * 2, times=[2] * 5 + [1] * 5,
        orientation=OBLIQUE, orientations=[OBLIQUE] * 10, sop_class=EnhancedMRImageStorage, **PLACE,
    )  # fmt: skip
    return load_volume(folder, frame=1)


def enhanced_files(folder: Path) -> Volume:
    folder.mkdir()
    for k in range(5):
        write_enhanced(folder / f"{9 - k}.dcm", VOXELS[..., k : k + 1], places=[3.0 * k], **PLACE)
    return load_volume(folder)


SERIES = {
    "ascending": series,
    "descending": lambda folder: series(folder, order=[4, 3, 2, 1, 0]),
    "shuffled": lambda folder: series(folder, order=[3, 0, 4, 1, 2]),
    "oblique": lambda folder: series(folder, OBLIQUE),
    "flipped": lambda folder: series(folder, FLIPPED, [2, 1, 4, 0, 3]),
    "sagittal": lambda folder: series(folder, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)),
    "tilted": tilted,
    "uneven": uneven,
    "one frame of several": dynamic,
    "one series of several": second_series,
    "zip": packed,
    "enhanced": enhanced,
    "one frame of an enhanced file": enhanced_dynamic,
    "enhanced files of one frame": enhanced_files,
}
