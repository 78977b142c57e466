"""Multi-frame DICOM files (enhanced CT, MR) written for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.support.dicom_files import AXIAL


def item(**tags: object) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def write_enhanced(
    path: Path,
    array: np.ndarray,
    *,
    places: Sequence[float] | None = None,
    orientation: Sequence[float] = AXIAL,
    orientations: Sequence[Sequence[float]] | None = None,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    spacing: Sequence[float] = (0.8, 0.5),
    slopes: Sequence[float] | None = None,
    intercept: float = -1024.0,
    times: Sequence[int] | None = None,
    sop_class: str = EnhancedCTImageStorage,
    series: str = "1.2.3.9",
    **tags: object,
) -> Path:
    """Write (i, j, n) uint16 frames as one file.

    Args:
        places: mm along the normal for each frame, in the file's order; 2 mm steps by default.
        orientations: for each frame, where they differ.
        spacing: mm between rows and between columns.
        slopes: for each frame, where they differ.
        times: temporal position index of each frame.
    """
    count = array.shape[2]
    places = [2.0 * k for k in range(count)] if places is None else places
    normal = np.cross(orientation[:3], orientation[3:])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2.3", series, "CT"
    data.SeriesDescription, data.InstanceNumber = "enhanced, made for a test", 1
    data.NumberOfFrames, data.Rows, data.Columns = count, array.shape[1], array.shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0

    def turned(axes: Sequence[float]) -> Dataset:
        return item(ImageOrientationPatient=[f"{v:.6f}" for v in axes])

    def rescale(slope: float) -> Dataset:
        return item(RescaleSlope=f"{slope:g}", RescaleIntercept=f"{intercept:g}", RescaleType="HU")

    measures = item(PixelSpacing=[f"{v:g}" for v in spacing], SliceThickness="5")
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    if orientations is None:
        shared.PlaneOrientationSequence = Items([turned(orientation)])
    if slopes is None:
        shared.PixelValueTransformationSequence = Items([rescale(1)])
    data.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for n in range(count):
        frame = Dataset()
        position = np.asarray(origin) + places[n] * normal
        frame.PlanePositionSequence = Items([item(ImagePositionPatient=[f"{v:.6f}" for v in position])])
        content = item(DimensionIndexValues=[1, n + 1])
        if times is not None:
            content.TemporalPositionIndex = times[n]
        frame.FrameContentSequence = Items([content])
        if orientations is not None:
            frame.PlaneOrientationSequence = Items([turned(orientations[n])])
        if slopes is not None:
            frame.PixelValueTransformationSequence = Items([rescale(slopes[n])])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.PixelData = np.ascontiguousarray(array.transpose(2, 1, 0)).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path
