"""DICOM slices of one series as a volume: order along the normal, missing slices, mixed geometry, frames.

A stack of slices is a volume when they have one size, spacing and orientation and lie evenly along a line.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsam_app.errors import SeriesChoice, VolumeError
from medsam_app.grid.geometry import flip_affine
from medsam_app.io.dicom.frames import split_frames
from medsam_app.io.dicom.series import TAGS, Slice, numbers
from medsam_app.system import machine_memory

#: A slice may lie this fraction of the slice distance off its place.
_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order, proven to make volumes.

    Attributes:
        frames: for each frame, its slices along the normal.
        affine: (4, 4) voxel indices (column, row, slice) to mm in RAS+.
    """

    frames: list[list[Slice]]
    affine: NDArray[np.float64]
    modality: str | None
    notes: tuple[str, ...]


def stack(name: str, slices: list[Slice]) -> Stack:
    """Order the slices of a series; `VolumeError` when they do not make a volume.

    Args:
        name: of the folder or zip, for messages.
    """
    first = slices[0]
    modality = first.tags.get(TAGS["modality"]) or None
    if any(item.components > 1 for item in slices):
        raise VolumeError(
            f"The series in '{name}' holds colours (RGB), but one intensity a voxel is needed; "
            "take the original scan, not a screenshot or a report."
        )
    slices = [
        part
        for item in slices
        for part in (split_frames(item) if item.size[2] > 1 or not _says_where(item) else [item])
    ]
    _check_alike(name, slices)
    _check_memory(name, slices)
    frames, notes = _split_frames(name, slices)
    affine, more = _affine(name, frames[0])
    return Stack(frames, affine, modality, tuple(notes + more))


def _says_where(item: Slice) -> bool:
    return item.axes is not None and item.position is not None and item.spacing is not None


def _check_alike(name: str, slices: list[Slice]) -> None:
    missing = [item for item in slices if not _says_where(item)]
    if missing:
        raise VolumeError(
            f"{len(missing)} of {len(slices)} slices in '{name}' do not say where they lie (no position, "
            f"orientation or spacing, '{missing[0].path.name}' for one); export the series with full headers."
        )
    sizes = Counter(f"{item.size[0]} x {item.size[1]}" for item in slices)
    spacings = Counter(" x ".join(f"{mm:.4g}" for mm in item.spacing or ()) + " mm" for item in slices)
    orientations = Counter(_orientation(item) for item in slices)
    for what, found in (("sizes", sizes), ("voxel spacings", spacings), ("orientations", orientations)):
        if len(found) > 1:
            listing = ", ".join(f"{count} of {value}" for value, count in found.most_common(4))
            raise VolumeError(
                f"The slices of one series in '{name}' have mixed {what} ({listing}); "
                "put slices of one geometry in a folder of their own (scouts are often the odd ones)."
            )


def _orientation(item: Slice) -> str:
    """Direction of the slice's normal and columns, rounded, for comparison and for messages."""
    assert item.axes is not None
    normal = np.cross(item.axes[0], item.axes[1])
    plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
    return f"{plane} [{' '.join(f'{value + 0.0:.3f}' for value in np.round(item.axes.ravel(), 3))}]"


def _check_memory(name: str, slices: list[Slice]) -> None:
    need = sum(item.size[0] * item.size[1] for item in slices) * 2
    memory = machine_memory()
    if memory is not None and need > memory:
        raise VolumeError(f"'{name}' does not fit the memory of this machine; crop or downsample it first.")


def _distance(item: Slice) -> float:
    assert item.axes is not None and item.position is not None
    return float(np.cross(item.axes[0], item.axes[1]) @ item.position)


def _split_frames(name: str, slices: list[Slice]) -> tuple[list[list[Slice]], list[str]]:
    """Slices by position along the normal; positions that come back several times are frames."""

    def order(item: Slice) -> tuple[Any, ...]:
        keys = [numbers(item.tags.get(TAGS[key]), 1) for key in ("acquisition", "echo", "time", "instance")]
        return tuple(0.0 if key is None else float(key[0]) for key in keys)

    places: list[list[Slice]] = []
    for item in sorted(slices, key=_distance):
        if places and abs(_distance(item) - _distance(places[-1][0])) < 1e-3:
            places[-1].append(item)
        else:
            places.append([item])
    counts = Counter(len(place) for place in places)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(place for place in places if len(place) != usual)
        raise VolumeError(
            f"In '{name}' most slice positions come {usual} time(s) but "
            f"{sum(len(p) != usual for p in places)} do not "
            f"(at {_distance(odd[0]):.2f} mm there are {len(odd)}); slices are missing or two series are "
            "mixed."
        )
    if len(places) < 2:
        raise VolumeError(
            f"'{name}' holds a single DICOM slice position (2D), but a 3D volume of two slices or more is "
            "needed; "
            "give the folder with the whole series."
        )
    return [list(frame) for frame in zip(*(sorted(place, key=order) for place in places), strict=True)], []


def _affine(name: str, slices: list[Slice]) -> tuple[NDArray[np.float64], list[str]]:
    """Affine of ordered slices; `VolumeError` when one is missing or out of line."""
    positions = np.array([item.position for item in slices])
    axes, spacing = slices[0].axes, slices[0].spacing
    assert axes is not None and spacing is not None
    gaps = np.diff([_distance(item) for item in slices])
    usual = float(np.median(gaps))
    holes = np.flatnonzero(gaps > 1.5 * usual)
    if len(holes):
        count = int(sum(round(gaps[hole] / usual) - 1 for hole in holes))
        at = _distance(slices[holes[0]])
        raise VolumeError(
            f"About {count} of {len(slices) + count} slices are missing in '{name}' (the first after "
            f"{at:.2f} mm along "
            f"the normal, where the distance is {gaps[holes[0]]:.2f} mm instead of {usual:.2f} mm); "
            "copy the whole series."
        )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    residual = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    if residual.max() > _TOLERANCE * usual + 0.01:
        raise VolumeError(
            f"The slices in '{name}' are not evenly spaced (distances from {gaps.min():.2f} to "
            f"{gaps.max():.2f} mm, "
            f"up to {residual.max():.2f} mm off their place); resample the series to even slices or split it."
        )
    lps = np.eye(4)
    lps[:3, 0] = axes[0] * spacing[0]
    lps[:3, 1] = axes[1] * spacing[1]
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    notes = []
    normal = np.cross(axes[0], axes[1])
    lean = np.degrees(np.arccos(np.clip(normal @ step / np.linalg.norm(step), -1, 1)))
    if lean > 0.5:
        notes.append(
            f"The slices are stacked {lean:.1f} degrees off their normal (gantry tilt); the affine is "
            "sheared."
        )
    return flip_affine(lps), notes


def pick_frame(name: str, stack: Stack, wanted: int | None) -> int:
    """The chosen frame, or the only one."""
    count = len(stack.frames)
    if wanted is None:
        if count == 1:
            return 0
        raise SeriesChoice(
            f"The series in '{name}' holds {count} frames (each slice position comes {count} times); "
            f"choose one of 0 to {count - 1} with the option 'frame'.",
            option="frame",
            choices=[(str(number), f"frame {number} of {count}") for number in range(count)],
        )
    if not 0 <= wanted < count:
        raise VolumeError(f"The series in '{name}' has no frame {wanted}; it has {count}, counted from 0.")
    return wanted


def result_type(slices: list[Slice]) -> np.dtype:
    """Return a type for all slices: the files' integer type, or float32 if rescaling gives fractions."""
    found = {item.pixel for item in slices}
    types = {sitk.sitkUInt8: "u1", sitk.sitkInt8: "i1", sitk.sitkUInt16: "u2", sitk.sitkInt16: "i2",
             sitk.sitkUInt32: "u4", sitk.sitkInt32: "i4"}  # fmt: skip
    if found <= set(types) and all(item.rescale == (1.0, 0.0) for item in slices):
        common = np.result_type(*[np.dtype(types[pixel]) for pixel in found])
        return common if common.kind in "iu" else np.dtype(np.float32)
    return np.dtype(np.float32)
