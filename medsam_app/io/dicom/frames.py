"""Frames of multi-frame DICOM files as slices with positions.

Multi-frame files hold enhanced CT, MR, PET and others. SimpleITK (GDCM) reads such a file as one block:
frames in the order of the file, with the spacing of the first two frames and the rescaling of the first. But
the frames may have any order, several time points, oblique positions and individual rescaling. This module
therefore reads the attributes of each frame with pydicom, because SimpleITK does not expose nested tags.
`medsam_app.io.dicom.stack` then treats frames like slices in separate files.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError

from medsam_app.errors import VolumeError
from medsam_app.io.dicom.series import TAGS, Slice

#: SOP classes whose frames GDCM rescales, all with the values of the first frame: enhanced CT, MR and PET,
#: legacy converted enhanced CT, MR and PET, X-ray 3D, breast tomosynthesis and projection. For other classes
#: it applies the top-level values, if any.
_SCALED = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("2.1", "2.2", "4.1", "4.4", "128.1", "130", *(f"13.1.{n}" for n in range(1, 6)))
)

#: Errors that pydicom raises for invalid headers.
DAMAGED = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    struct.error,
)


def split_frames(item: Slice) -> list[Slice]:
    """Return the frames of a multi-frame file in the order of the file.

    A single-frame file without per-frame functional groups is returned unchanged.

    Raises:
        VolumeError: the positions of the frames are missing or inconsistent.
    """
    names = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    scale = ["RescaleSlope", "RescaleIntercept"]
    count = item.size[2]
    try:
        data = pydicom.dcmread(item.path, stop_before_pixels=True, specific_tags=[*names, *scale], force=True)
        shared = (data.get(names[0]) or [pydicom.Dataset()])[0]
        groups = list(data.get(names[1]) or [])
        if not groups and count == 1:
            return [item]
        if not groups:
            raise VolumeError(
                f"'{item.path.name}' is a multi-frame DICOM file that does not say where its {count} frames "
                "lie (a film, for example); convert it to .nii.gz."
            )
        if len(groups) != count:
            raise VolumeError(
                f"'{item.path.name}' holds {count} DICOM frames but says of {len(groups)} where they lie; "
                "export it again."
            )
        slope, intercept = (data.get(name) for name in scale)
        top = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
        return _slices(item, shared, groups, top)
    except DAMAGED as error:
        raise VolumeError(
            f"What '{item.path.name}' says of its {count} DICOM frames is damaged; export it again."
        ) from error


def _slices(item: Slice, shared: object, groups: list, top: tuple[float, float]) -> list[Slice]:
    """Return the frames.

    Args:
        item: the file.
        shared: functional groups of all frames.
        groups: functional groups per frame.
        top: slope and intercept at the top level, used for frames without their own values.
    """
    frames: list[Slice] = []
    applied = top
    if item.sop_class in _SCALED:
        applied = _scale(shared) or _scale(groups[0]) or top
    for number, group in enumerate(groups):

        def value(sequence: str, name: str, group: object = group) -> object:
            """Return an attribute of the frame, or of all frames."""
            for source in (group, shared):
                items = source.get(f"{sequence}Sequence")  # type: ignore[attr-defined]
                if items:
                    return items[0].get(name)
            return None

        axes = _vector(value("PlaneOrientation", "ImageOrientationPatient"), 6)
        spacing = _vector(value("PixelMeasures", "PixelSpacing"), 2)
        slope, intercept = _scale(group) or _scale(shared) or top
        if not slope or not applied[0]:
            raise ValueError("a slope of zero")
        factor = slope / applied[0]
        order = {
            "acquisition": value("FrameContent", "TemporalPositionIndex"),
            "echo": value("MREcho", "EffectiveEchoTime"),
            "instance": number if len(groups) > 1 else None,
        }
        frames.append(
            dataclasses.replace(
                item,
                size=(*item.size[:2], 1),
                frame=number,
                rescale=(factor, intercept - factor * applied[1]),
                tags=item.tags | {TAGS[key]: str(index) for key, index in order.items() if index is not None},
                axes=None if axes is None else axes.reshape(2, 3),
                position=_vector(value("PlanePosition", "ImagePositionPatient"), 3),
                spacing=None if spacing is None else (float(spacing[1]), float(spacing[0])),
            )
        )
    return frames


def _scale(group: object) -> tuple[float, float] | None:
    """Return the slope and intercept of a frame or of all frames, or None if they are missing."""
    items = group.get("PixelValueTransformationSequence")  # type: ignore[attr-defined]
    numbers = (
        _vector([items[0].get(f"Rescale{name}") for name in ("Slope", "Intercept")], 2) if items else None
    )
    return None if numbers is None else (float(numbers[0]), float(numbers[1]))


def _vector(value: object, count: int) -> NDArray[np.float64] | None:
    """Return the numbers of an attribute, or None if they are missing or invalid."""
    if value is None or (isinstance(value, list) and None in value):
        return None
    numbers = np.array(value, dtype=np.float64)
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
