"""Validation of voxels, affines and NIfTI geometry, with notes for the user."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam_app.errors import VolumeError
from medsam_app.grid.geometry import Grid, format_mm

#: Fields of a NIfTI header that place the image in space.
NIFTI_GEOMETRY = (
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def checked_affine(name: str, affine: ArrayLike) -> NDArray[np.float64]:
    """Return a (4, 4) float64 affine; raise `VolumeError` if it is not finite or is singular."""
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise VolumeError(
            f"The affine of '{name}' has shape {matrix.shape}; a 4 x 4 matrix to mm in RAS is needed."
        )
    if not np.isfinite(matrix).all():
        raise VolumeError(f"The affine of '{name}' has values that are not finite; export the image again.")
    lengths = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
    if lengths.min() <= 0:
        raise VolumeError(
            f"The voxel size of '{name}' is zero along an axis ({format_mm(lengths)}); export it again."
        )
    if abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-4:
        raise VolumeError(f"The affine of '{name}' is singular: its axes do not span space; export it again.")
    return matrix


def checked_voxels(name: str, array: NDArray) -> tuple[NDArray, tuple[str, ...]]:
    """Return (i, j, k) finite integers or float32, and notes on replaced values.

    NaN and -inf become the smallest finite value, +inf the largest. Many tools store NaN outside the field of
    view, and such voxels must not make a volume unusable.

    Raises:
        VolumeError: not 3D, not numbers, or no voxel is finite.
    """
    if array.ndim != 3 or min(array.shape) < 2:
        raise VolumeError(
            f"A volume needs three axes of two voxels or more; '{name}' has shape {array.shape}."
        )
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise VolumeError(
            f"The voxels of '{name}' are of type {array.dtype}; one real number a voxel is needed."
        )
    if array.dtype.kind == "f" and array.dtype != np.float32:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    notes: list[str] = []
    if array.dtype.kind == "f":
        array, notes = _replace_nonfinite(name, array)
    low, high = array.min(), array.max()
    if low == high:
        notes.append(f"Every voxel has the same value ({low:g}): there is nothing to see.")
    return array, tuple(notes)


def _replace_nonfinite(name: str, array: NDArray) -> tuple[NDArray, list[str]]:
    """Return the array with finite values only, and a note if any value was replaced."""
    bad, low, high = 0, np.inf, -np.inf
    for k in range(array.shape[2]):  # slice by slice: no second copy of the volume
        plane = array[:, :, k]
        finite = np.isfinite(plane)
        bad += int(plane.size - np.count_nonzero(finite))
        low = min(low, float(plane.min(where=finite, initial=np.inf)))
        high = max(high, float(plane.max(where=finite, initial=-np.inf)))
    if bad == array.size:
        raise VolumeError(
            f"No voxel of '{name}' is a finite number (all are NaN or infinite); export it again."
        )
    if not bad:
        return array, []
    # Copy: do not modify the caller's array.
    array = np.nan_to_num(array, copy=True, nan=low, posinf=high, neginf=low)
    text = "1 voxel was" if bad == 1 else f"{bad} voxels were"
    return array, [
        f"{text} not a finite number and took the lowest value {low:g} (the highest {high:g} for +infinity)."
    ]


def nifti_notes(header: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return notes on the geometry of a NIfTI header, and the header fields copied into saved masks."""
    notes = []
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    shape = (int(header["dim"][1]), int(header["dim"][2]), int(header["dim"][3]))
    if qform is None and sform is None:
        notes.append(
            "The header does not say how the image lies in the patient: left and right may be swapped."
        )
    elif qform is not None and sform is not None:
        difference = (
            Grid(shape, sform).difference(Grid(shape, qform)) if np.linalg.det(sform[:3, :3]) else None
        )
        if difference:
            notes.append(f"The header's qform and sform disagree (qform: {difference}); the sform is used.")
    zooms = np.asarray(header.get_zooms()[:3], dtype=float)
    spacing = np.sqrt((header.get_best_affine()[:3, :3] ** 2).sum(axis=0))
    if not np.allclose(zooms, spacing, rtol=1e-3, atol=1e-4):
        notes.append(
            f"The header gives voxels of {format_mm(zooms)}, its affine {format_mm(spacing)}; the affine "
            "is used."
        )
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        notes.append(f"The header gives lengths in {unit}; they are taken as mm.")
    fields = {name: np.array(header[name]) for name in NIFTI_GEOMETRY}
    fields["pixdim"] = np.array(header["pixdim"][:4])
    return tuple(notes), fields
