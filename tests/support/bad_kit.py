"""Helpers for the tables of bad inputs."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medsam_app.errors import MedsamError, VolumeError

SHAPE = (6, 7, 5)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@dataclass(frozen=True)
class BadInput:
    """One case: `run(folder)` creates the input in an empty folder and opens or saves it."""

    what: str
    kind: type[MedsamError]
    run: Callable[[Path], object]


BAD_INPUTS: list[BadInput] = []


def case(what: str, kind: type[MedsamError] = VolumeError) -> Callable:
    """Add the decorated function to the table."""

    def add(run: Callable[[Path], object]) -> Callable[[Path], object]:
        BAD_INPUTS.append(BadInput(what, kind, run))
        return run

    return add


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def nifti(path: Path, array: np.ndarray | None = None, **header: object) -> Path:
    """Write a NIfTI file, then set fields of its header without validation."""
    array = voxels() if array is None else array
    image = nib.Nifti1Image(array, AFFINE, dtype=array.dtype)
    plain = image.to_bytes()
    if header:
        block = nib.Nifti1Header(plain[:348], check=False)
        for name, value in header.items():
            block[name] = value
        plain = block.binaryblock + plain[348:]
    path.write_bytes(gzip.compress(plain) if path.suffix == ".gz" else plain)
    return path


def itk(path: Path, array: np.ndarray, *, vector: bool = False, compress: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(path), compress)
    return path


def damaged(path: Path, keep: float) -> Path:
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def text(path: Path, content: str, data: bytes = b"") -> Path:
    path.write_bytes(content.encode() + data)
    return path


def slices(count: int = 6) -> np.ndarray:
    return voxels((8, 9, count), "uint16")
