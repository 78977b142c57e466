"""Frames of a multi-frame DICOM file (enhanced CT, MR, PET and others) as slices that say where they lie.

SimpleITK (GDCM) reads such a file as one block: the frames in the file's order, evenly spaced as the first
ones are, values scaled as those of the first. A file may hold them in any order, at several times, askew
or scaled one by one. What it says of each frame is therefore read here, with pydicom, since SimpleITK
shows no nested tags; `medsam_app.dicom_stack` then treats frames like slices that are files.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError

from medsam_app.dicom import TAGS, Slice
from medsam_app.errors import VolumeError

#: What pydicom raises for headers that make no sense.
_DAMAGED = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    struct.error,
)


def split_frames(item: Slice) -> list[Slice]:
    """The frames of a multi-frame file, in its order.

    Raises:
        VolumeError: the file does not say where its frames lie, or contradicts itself.
    """
    names = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    count = item.size[2]
    try:
        data = pydicom.dcmread(item.path, stop_before_pixels=True, specific_tags=[*names], force=True)
        shared = (data.get(names[0]) or [pydicom.Dataset()])[0]
        groups = list(data.get(names[1]) or [])
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
        return _slices(item, shared, groups)
    except _DAMAGED as error:
        raise VolumeError(
            f"What '{item.path.name}' says of its {count} DICOM frames is damaged; export it again."
        ) from error


def _slices(item: Slice, shared: object, groups: list) -> list[Slice]:
    frames: list[Slice] = []
    first = (1.0, 0.0)
    for number, group in enumerate(groups):

        def value(macro: str, name: str, group: object = group) -> object:
            """A tag of the frame, or of all frames together."""
            for each in (group, shared):
                found = each.get(f"{macro}Sequence")  # type: ignore[attr-defined]
                if found:
                    return found[0].get(name)
            return None

        axes = _vector(value("PlaneOrientation", "ImageOrientationPatient"), 6)
        spacing = _vector(value("PixelMeasures", "PixelSpacing"), 2)
        rescale = _vector(
            [value("PixelValueTransformation", f"Rescale{name}") for name in ("Slope", "Intercept")], 2
        )
        slope, intercept = (1.0, 0.0) if rescale is None else (float(rescale[0]), float(rescale[1]))
        if number == 0:
            first = (slope, intercept)
        if not slope:
            raise ValueError("a slope of zero")
        factor = slope / first[0]
        order = {
            "acquisition": value("FrameContent", "TemporalPositionIndex"),
            "echo": value("MREcho", "EffectiveEchoTime"),
            "instance": number,
        }
        frames.append(
            dataclasses.replace(
                item,
                size=(*item.size[:2], 1),
                frame=number,
                rescale=(factor, intercept - factor * first[1]),
                tags=item.tags | {TAGS[key]: str(said) for key, said in order.items() if said is not None},
                axes=None if axes is None else axes.reshape(2, 3),
                position=_vector(value("PlanePosition", "ImagePositionPatient"), 3),
                spacing=None if spacing is None else (float(spacing[1]), float(spacing[0])),
            )
        )
    return frames


def _vector(value: object, count: int) -> NDArray[np.float64] | None:
    """Numbers of a tag, or None when they are not there."""
    if value is None or (isinstance(value, list) and None in value):
        return None
    numbers = np.array(value, dtype=np.float64)
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
