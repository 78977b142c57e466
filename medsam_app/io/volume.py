"""Volume: an array in the voxel order of its file, with its grid and its source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.io.checks import checked_affine, checked_voxels


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image.

    Attributes:
        array: (i, j, k) finite intensities in the file's own order: the file's integer type, or float32.
        grid: shape and affine to mm in RAS+.
        source: file or folder that the volume was read from.
        modality: DICOM modality ("CT", "MR", ...), or None if unknown.
        nifti_codes: (qform_code, sform_code) of the source, copied into saved masks.
        notes: sentences about the file to show to the user.
        series, frame, channel: part of the source that was read.
        nifti_geometry: the header fields that place a NIfTI image in space, copied into saved masks.
    """

    array: NDArray
    grid: Grid
    source: Path | None = None
    modality: str | None = None
    nifti_codes: tuple[int, int] = (1, 1)
    notes: tuple[str, ...] = ()
    series: str | None = None
    frame: int = 0
    channel: int = 0
    nifti_geometry: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (i, j, k)."""
        return self.grid.shape

    @property
    def spacing(self) -> NDArray[np.float64]:
        """(3,) voxel size in mm along (i, j, k)."""
        return self.grid.spacing

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel indices to mm in RAS+."""
        return self.grid.affine

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of dtype, shape, affine and voxels, independent of the memory layout."""
        digest = hashlib.sha256(f"{self.array.dtype.str} {self.shape} ".encode())
        digest.update(np.ascontiguousarray(self.affine, dtype="<f8").tobytes())
        for k in range(self.shape[2]):  # slice by slice: no second copy of the volume
            digest.update(np.ascontiguousarray(self.array[:, :, k].T).data)
        return digest.hexdigest()

    @classmethod
    def from_array(cls, array: NDArray, affine: ArrayLike, *, modality: str | None = None) -> Volume:
        """Return a volume from an (i, j, k) array and its (4, 4) affine to mm in RAS+, checked like a file.

        Raises:
            VolumeError: not 3D, no finite voxel, singular affine.
        """
        return make_volume("the array", array, affine, modality=modality)


def make_volume(name: str, array: NDArray, affine: ArrayLike, **fields: Any) -> Volume:
    """Validate voxels and affine and return them as a volume.

    Args:
        name: name of the file, for messages.
        array: (i, j, k) voxels.
        affine: (4, 4) voxel indices to mm in RAS+.
        fields: further attributes of `Volume`; notes of the validation are appended to `notes`.
    """
    grid = Grid(tuple(int(n) for n in array.shape), checked_affine(name, affine))  # type: ignore[arg-type]
    array, notes = checked_voxels(name, array)
    return Volume(array, grid, notes=tuple(fields.pop("notes", ())) + notes, **fields)
