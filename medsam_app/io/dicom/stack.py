"""Stacks of DICOM slices: order along the normal, checks of the geometry, frames.

Slices form a volume if they have equal size, spacing and orientation and are evenly spaced on a line.
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

#: Largest deviation of a slice from its position, as a fraction of the slice distance.
_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class Stack:
    """Ordered slices that form one or several volumes.

    Attributes:
        frames: slices of each frame, ordered along the normal.
        affine: (4, 4) voxel indices (column, row, slice) to mm in RAS+.
        modality: DICOM modality, or None if unknown.
        notes: sentences for the user.
    """

    frames: list[list[Slice]]
    affine: NDArray[np.float64]
    modality: str | None
    notes: tuple[str, ...]


def stack(name: str, slices: list[Slice]) -> Stack:
    """Order the slices of a series; raise `VolumeError` if they do not form a volume.

    Args:
        name: name of the folder or .zip, for messages.
        slices: slices of one series, in any order.
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
        for part in (split_frames(item) if item.size[2] > 1 or not _has_geometry(item) else [item])
    ]
    _check_alike(name, slices)
    _check_memory(name, slices)
    frames, notes = _split_frames(name, slices)
    affine, more = _affine(name, frames[0])
    return Stack(frames, affine, modality, tuple(notes + more))


def _has_geometry(item: Slice) -> bool:
    return item.axes is not None and item.position is not None and item.spacing is not None


def _check_alike(name: str, slices: list[Slice]) -> None:
    missing = [item for item in slices if not _has_geometry(item)]
    if missing:
        raise VolumeError(
            f"{len(missing)} of {len(slices)} slices in '{name}' do not say where they lie (no position, "
            f"orientation or spacing, '{missing[0].path.name}' for one); export the series with full headers."
        )
    sizes = Counter(f"{item.size[0]} x {item.size[1]}" for item in slices)
    spacings = Counter(" x ".join(f"{mm:.4g}" for mm in item.spacing or ()) + " mm" for item in slices)
    orientations = Counter(_orientation(item) for item in slices)
    for attribute, counts in (("sizes", sizes), ("voxel spacings", spacings), ("orientations", orientations)):
        if len(counts) > 1:
            listing = ", ".join(f"{count} of {value}" for value, count in counts.most_common(4))
            raise VolumeError(
                f"The slices of one series in '{name}' have mixed {attribute} ({listing}); "
                "put slices of one geometry in a folder of their own (scouts are often the odd ones)."
            )


def _orientation(item: Slice) -> str:
    """Return the plane and the rounded axes of a slice, for comparison and for messages."""
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
    """Group the slices into frames, ordered along the normal.

    A position that occurs several times belongs to several frames, for example time points.
    """

    def order(item: Slice) -> tuple[Any, ...]:
        keys = [numbers(item.tags.get(TAGS[key]), 1) for key in ("acquisition", "echo", "time", "instance")]
        return tuple(0.0 if key is None else float(key[0]) for key in keys)

    positions: list[list[Slice]] = []
    for item in sorted(slices, key=_distance):
        if positions and abs(_distance(item) - _distance(positions[-1][0])) < 1e-3:
            positions[-1].append(item)
        else:
            positions.append([item])
    counts = Counter(len(group) for group in positions)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(group for group in positions if len(group) != usual)
        raise VolumeError(
            f"In '{name}' most slice positions come {usual} time(s) but "
            f"{sum(len(p) != usual for p in positions)} do not "
            f"(at {_distance(odd[0]):.2f} mm there are {len(odd)}); slices are missing or two series are "
            "mixed."
        )
    if len(positions) < 2:
        raise VolumeError(
            f"'{name}' holds a single DICOM slice position (2D), but a 3D volume of two slices or more is "
            "needed; "
            "give the folder with the whole series."
        )
    return [list(frame) for frame in zip(*(sorted(group, key=order) for group in positions), strict=True)], []


def _affine(name: str, slices: list[Slice]) -> tuple[NDArray[np.float64], list[str]]:
    """Return the affine of ordered slices, and notes; raise `VolumeError` if slices are missing or uneven."""
    positions = np.array([item.position for item in slices])
    axes, spacing = slices[0].axes, slices[0].spacing
    assert axes is not None and spacing is not None
    gaps = np.diff([_distance(item) for item in slices])
    usual = float(np.median(gaps))
    holes = np.flatnonzero(gaps > 1.5 * usual)
    if len(holes):
        count = int(sum(round(gaps[hole] / usual) - 1 for hole in holes))
        position = _distance(slices[holes[0]])
        raise VolumeError(
            f"About {count} of {len(slices) + count} slices are missing in '{name}' (the first after "
            f"{position:.2f} mm along "
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
    tilt = np.degrees(np.arccos(np.clip(normal @ step / np.linalg.norm(step), -1, 1)))
    if tilt > 0.5:
        notes.append(
            f"The slices are stacked {tilt:.1f} degrees off their normal (gantry tilt); the affine is "
            "sheared."
        )
    return flip_affine(lps), notes


def pick_frame(name: str, stack: Stack, chosen: int | None) -> int:
    """Return the number of the chosen frame, or of the only one.

    Args:
        name: name of the folder or .zip, for messages.
        stack: the slices.
        chosen: number from 0; None for the only frame.

    Raises:
        SeriesChoice: there are several frames and none is chosen.
        VolumeError: there is no such frame.
    """
    count = len(stack.frames)
    if chosen is None:
        if count == 1:
            return 0
        raise SeriesChoice(
            f"The series in '{name}' holds {count} frames (each slice position comes {count} times); "
            f"choose one of 0 to {count - 1} with the option 'frame'.",
            option="frame",
            choices=[(str(number), f"frame {number} of {count}") for number in range(count)],
        )
    if not 0 <= chosen < count:
        raise VolumeError(f"The series in '{name}' has no frame {chosen}; it has {count}, counted from 0.")
    return chosen


def result_type(slices: list[Slice]) -> np.dtype:
    """Return a type for all slices: an integer type that holds those of the files, or float32."""
    pixel_types = {item.pixel for item in slices}
    types = {sitk.sitkUInt8: "u1", sitk.sitkInt8: "i1", sitk.sitkUInt16: "u2", sitk.sitkInt16: "i2",
             sitk.sitkUInt32: "u4", sitk.sitkInt32: "i4"}  # fmt: skip
    if pixel_types <= set(types) and all(item.rescale == (1.0, 0.0) for item in slices):
        common = np.result_type(*[np.dtype(types[pixel]) for pixel in pixel_types])
        return common if common.kind in "iu" else np.dtype(np.float32)
    return np.dtype(np.float32)
