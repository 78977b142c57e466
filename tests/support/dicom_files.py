"""DICOM series written for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_slice(
    path: Path,
    pixels: np.ndarray,
    *,
    position: Sequence[float],
    series: str,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.8, 0.8),
    slope: float = 1.0,
    intercept: float = -1024.0,
    number: int = 1,
    **tags: object,
) -> Path:
    """Write one slice: `pixels` (rows, columns) uint16, or (rows, columns, 3) uint8 for RGB."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = tags.pop("sop_class", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = series
    data.StudyInstanceUID = "1.2.3"
    data.Modality = "CT"
    data.SeriesDescription = "made for a test"
    data.InstanceNumber = number
    data.Rows, data.Columns = pixels.shape[:2]
    data.PixelSpacing = [f"{value:g}" for value in spacing]
    data.ImagePositionPatient = [f"{value:.6f}" for value in position]
    data.ImageOrientationPatient = [f"{value:.6f}" for value in orientation]
    colour = pixels.ndim == 3
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, 0
    if not colour:
        data.RescaleSlope, data.RescaleIntercept = f"{slope:g}", f"{intercept:g}"
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    distances: Sequence[float] | None = None,
    series: str = "1.2.3.4",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    first: int = 0,
    **options: object,
) -> Path:
    """Write (i, j, k) uint16 voxels, one file per slice, at `distances` mm along the normal (2 mm steps)."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    distances = [2.0 * k for k in range(array.shape[2])] if distances is None else distances
    for k, distance in enumerate(distances):
        write_slice(
            folder / f"{first + k:03d}.dcm",
            array[:, :, k].T,
            position=np.asarray(origin) + distance * normal,
            orientation=orientation,
            series=series,
            number=first + k + 1,
            **options,  # type: ignore[arg-type]
        )
    return folder
