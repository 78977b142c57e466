"""Reader of DICOM segmentations (SEG) as label maps on the grid of an image.

A frame of a binary segmentation holds one segment in one plane. Frames without foreground are usually
omitted, so each frame is assigned to a slice by its position.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import SegmentationStorage

from medsam_app.errors import GridMismatch, VolumeError
from medsam_app.grid.geometry import GRID_TOLERANCE, Grid, flip_points
from medsam_app.io.dicom.frames import DAMAGED

#: Largest distance of a frame from its slice: a fraction of the slice distance plus a length in mm. The
#: slices of a series have the same tolerance.
_SLICE_TOLERANCE = 0.06, 0.01
LONGEST_LABEL = 64


def read_dicom_seg(path: str | Path, grid: Grid) -> tuple[NDArray, dict[int, str]]:
    """Read a binary DICOM segmentation on a grid.

    Args:
        path: file. Overlapping segments are refused, because a voxel has one label.
        grid: grid of the image. Slices without a frame are background.

    Returns:
        (i, j, k) label map in the smallest unsigned type, 0 = background, and the names of its labels. The
        labels are those recorded by `save_dicom_seg`, otherwise the segment numbers.

    Raises:
        VolumeError: the file does not exist, is damaged or is not a binary segmentation, or segments overlap.
        GridMismatch: the frames are not on the slices of the grid.
    """
    path = Path(path).expanduser()
    data = read_segmentation(path)
    try:
        return label_map_of(path, data, grid), dict(segment_names(data).values())
    except (*DAMAGED, IndexError, RuntimeError, NotImplementedError) as error:
        raise VolumeError(
            f"The DICOM segmentation '{path.name}' is damaged or cut short; export it again."
        ) from error


def read_segmentation(path: Path) -> Dataset:
    """Return the dataset of a file without decoding its pixels.

    Raises:
        VolumeError: the file does not exist, is damaged or is not a binary segmentation.
    """
    if not path.is_file():
        raise VolumeError(f"There is no file '{path}'; check the path.")
    try:
        data = pydicom.dcmread(path)
    except (*DAMAGED, EOFError) as error:
        raise VolumeError(f"'{path.name}' is not a DICOM file or is damaged; export it again.") from error
    if data.get("SOPClassUID") != SegmentationStorage or data.get("SegmentationType") != "BINARY":
        kind = data.get("SegmentationType") or data.get("Modality") or "unknown kind"
        raise VolumeError(
            f"'{path.name}' is not a binary DICOM segmentation ({kind}); export the mask as a binary "
            "segmentation or as .nii.gz."
        )
    return data


def segment_names(data: Dataset) -> dict[int, tuple[int, str]]:
    """Return the label and name of each segment by its number."""
    segments: dict[int, tuple[int, str]] = {}
    for item in data.SegmentSequence:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or "")
        recorded = re.fullmatch(
            r"label (\d{1,10}): (.*)", str(item.get("SegmentDescription") or ""), re.DOTALL
        )
        if recorded is None:
            segments[number] = number, name or f"segment {number}"
        else:  # the full name, unless the segment was renamed later
            segments[number] = int(recorded[1]), recorded[2] if short(recorded[2]) == name else name
    if len({label for label, _ in segments.values()}) < len(segments):
        return {number: (number, name) for number, (_, name) in segments.items()}
    return segments


def short(name: str) -> str:
    """Return a name that fits into a segment label: at most 64 characters, no backslash."""
    return re.sub(r"[\\\x00-\x1f\x7f]", " ", name).strip()[:LONGEST_LABEL].strip()


def label_map_of(path: Path, data: Dataset, grid: Grid) -> NDArray:
    """Return the (i, j, k) label map of a segmentation. Frames are decoded one by one to save memory."""
    positions = frame_places(path, data, grid)
    labels = {number: label for number, (label, _) in segment_names(data).items()}
    label_map = np.zeros(grid.shape[::-1], dtype=np.min_scalar_type(max(labels.values())))
    for (number, k), frame in zip(positions, _frames(path, data), strict=True):
        inside = frame != 0
        if label_map[k][inside].any():
            raise VolumeError(
                f"Segments of '{path.name}' overlap (segment {number} and another one, in slice {k}), but "
                "a voxel of a label map has one label; export each segment to a file of its own."
            )
        label_map[k][inside] = labels[number]
    return label_map.transpose(2, 1, 0)


def _frames(path: Path, data: Dataset) -> Iterator[NDArray]:
    """Yield the (rows, columns) array of each frame, not 0 inside."""
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or not syntax.is_little_endian:
        yield from iter_pixels(path, raw=True)
        return
    # Frames are packed without gaps, so most of them start within a byte. pydicom would read such frames
    # without their last byte.
    packed = np.frombuffer(data.PixelData, np.uint8)
    size = data.Rows * data.Columns
    for start in range(0, size * int(data.NumberOfFrames), size):
        bits = np.unpackbits(packed[start // 8 : (start + size + 7) // 8], bitorder="little")
        yield bits[start % 8 :][:size].reshape(data.Rows, data.Columns)


def frame_places(path: Path, data: Dataset, grid: Grid) -> list[tuple[int, int]]:
    """Return the segment number and the slice index k of each frame.

    Raises:
        GridMismatch: a frame has another size, or is not on a slice of the grid.
    """
    shared = data.SharedFunctionalGroupsSequence[0]
    size = int(data.Columns), int(data.Rows)
    if size != grid.shape[:2]:
        raise _grid_mismatch(
            path, f"frames of {size[0]} x {size[1]} instead of {grid.shape[0]} x {grid.shape[1]}"
        )
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (np.array(size) - 1)
    positions = []
    for group in data.PerFrameFunctionalGroupsSequence:

        def macro(name: str, group: Dataset = group) -> Dataset:
            return (group.get(name) or shared.get(name))[0]

        cosines = np.array(macro("PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
        pixel_spacing = np.array(macro("PixelMeasuresSequence").PixelSpacing, float)[::-1]
        steps = flip_points(cosines * pixel_spacing[:, None])  # RAS, along i and along j
        corner = flip_points(np.array(macro("PlanePositionSequence").ImagePositionPatient, float))
        k = round(float(grid.to_voxel(corner)[2]))
        distance = float(np.linalg.norm(corner - grid.to_world((0, 0, k))))
        deviation = np.linalg.norm(corners @ (steps - grid.affine[:3, :2].T), axis=1).max()
        if (
            not 0 <= k < grid.shape[2]
            or distance > _SLICE_TOLERANCE[0] * grid.spacing[2] + _SLICE_TOLERANCE[1]
        ):
            raise _grid_mismatch(path, f"a frame {distance:.2f} mm from the nearest slice")
        if deviation > GRID_TOLERANCE * grid.spacing.min():
            raise _grid_mismatch(path, f"frames that are turned or scaled, by up to {deviation:.2f} mm")
        positions.append((int(macro("SegmentIdentificationSequence").ReferencedSegmentNumber), k))
    return positions


def _grid_mismatch(path: Path, what: str) -> GridMismatch:
    return GridMismatch(
        f"The DICOM segmentation '{path.name}' does not lie on the grid of the image ({what}); give one made "
        "on this series, or resample it to the image first."
    )
