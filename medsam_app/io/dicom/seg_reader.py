"""DICOM segmentations (SEG) read as label maps on the grid of an image.

Each frame of a binary segmentation is one segment in one plane. Frames that are all background are left
out of such files, so every frame's own position says to which slice it belongs.
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

#: Largest distance of a frame from its slice, as a fraction of the slice distance and in mm: the same
#: tolerance as for the slices of a series on the volume's grid.
_BESIDE = 0.06, 0.01
LONGEST_LABEL = 64


def read_dicom_seg(path: str | Path, grid: Grid) -> tuple[NDArray, dict[int, str]]:
    """Read a binary DICOM segmentation that lies on a grid.

    Args:
        path: a file; segments that overlap are refused, since a voxel has one label.
        grid: of the image. Slices without a frame are background.

    Returns:
        (i, j, k) label map in the smallest unsigned type, 0 = background, and the names of its labels. A
        label is the one that `save_dicom_seg` noted down, or else the number of the segment.

    Raises:
        VolumeError: no such file, no binary segmentation, damaged, or its segments overlap.
        GridMismatch: its frames lie elsewhere than the slices of the grid.
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
    """The whole file, its pixels still packed; `VolumeError` when it is no binary segmentation."""
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
    """Label and name of each segment, by its number."""
    found: dict[int, tuple[int, str]] = {}
    for item in data.SegmentSequence:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or "")
        noted = re.fullmatch(r"label (\d{1,10}): (.*)", str(item.get("SegmentDescription") or ""), re.DOTALL)
        if noted is None:
            found[number] = number, name or f"segment {number}"
        else:  # the whole name, unless a user has given the segment another one
            found[number] = int(noted[1]), noted[2] if short(noted[2]) == name else name
    if len({label for label, _ in found.values()}) < len(found):
        return {number: (number, name) for number, (_, name) in found.items()}
    return found


def short(name: str) -> str:
    """A name as the label of a segment can hold it: 64 characters, no backslash."""
    return re.sub(r"[\\\x00-\x1f\x7f]", " ", name).strip()[:LONGEST_LABEL].strip()


def label_map_of(path: Path, data: Dataset, grid: Grid) -> NDArray:
    """(i, j, k) label map of a segmentation; frame by frame, in one array."""
    places = frame_places(path, data, grid)
    labels = {number: label for number, (label, _) in segment_names(data).items()}
    out = np.zeros(grid.shape[::-1], dtype=np.min_scalar_type(max(labels.values())))
    for (number, k), frame in zip(places, _frames(path, data), strict=True):
        inside = frame != 0
        if out[k][inside].any():
            raise VolumeError(
                f"Segments of '{path.name}' overlap (segment {number} and another one, in slice {k}), but "
                "a voxel of a label map has one label; export each segment to a file of its own."
            )
        out[k][inside] = labels[number]
    return out.transpose(2, 1, 0)


def _frames(path: Path, data: Dataset) -> Iterator[NDArray]:
    """(rows, columns) of each frame, not 0 inside."""
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or not syntax.is_little_endian:
        yield from iter_pixels(path, raw=True)
        return
    # frames follow one another without a gap, so that most begin within a byte: pydicom reads such a frame
    # without its last byte
    packed = np.frombuffer(data.PixelData, np.uint8)
    size = data.Rows * data.Columns
    for start in range(0, size * int(data.NumberOfFrames), size):
        bits = np.unpackbits(packed[start // 8 : (start + size + 7) // 8], bitorder="little")
        yield bits[start % 8 :][:size].reshape(data.Rows, data.Columns)


def frame_places(path: Path, data: Dataset, grid: Grid) -> list[tuple[int, int]]:
    """For each frame, the number of its segment and the index k of its slice.

    Raises:
        GridMismatch: a frame has another size, or does not lie on a slice of the grid.
    """
    shared = data.SharedFunctionalGroupsSequence[0]
    size = int(data.Columns), int(data.Rows)
    if size != grid.shape[:2]:
        raise _elsewhere(
            path, f"frames of {size[0]} x {size[1]} instead of {grid.shape[0]} x {grid.shape[1]}"
        )
    far = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (np.array(size) - 1)
    places = []
    for group in data.PerFrameFunctionalGroupsSequence:

        def macro(name: str, group: Dataset = group) -> Dataset:
            return (group.get(name) or shared.get(name))[0]

        cosines = np.array(macro("PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
        between = np.array(macro("PixelMeasuresSequence").PixelSpacing, float)[::-1]
        steps = flip_points(cosines * between[:, None])  # RAS, along i and along j
        corner = flip_points(np.array(macro("PlanePositionSequence").ImagePositionPatient, float))
        k = round(float(grid.to_voxel(corner)[2]))
        beside = float(np.linalg.norm(corner - grid.to_world((0, 0, k))))
        turned = np.linalg.norm(far @ (steps - grid.affine[:3, :2].T), axis=1).max()
        if not 0 <= k < grid.shape[2] or beside > _BESIDE[0] * grid.spacing[2] + _BESIDE[1]:
            raise _elsewhere(path, f"a frame {beside:.2f} mm from the nearest slice")
        if turned > GRID_TOLERANCE * grid.spacing.min():
            raise _elsewhere(path, f"frames that are turned or scaled, by up to {turned:.2f} mm")
        places.append((int(macro("SegmentIdentificationSequence").ReferencedSegmentNumber), k))
    return places


def _elsewhere(path: Path, what: str) -> GridMismatch:
    return GridMismatch(
        f"The DICOM segmentation '{path.name}' does not lie on the grid of the image ({what}); give one made "
        "on this series, or resample it to the image first."
    )
