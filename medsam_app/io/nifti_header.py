"""Headers of single-file NIfTI images, found by content and read unchanged."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Any

import nibabel as nib

from medsam_app.errors import VolumeError


class _Gzip(gzip.GzipFile):
    """Gzip file that fills large buffers in pieces; the base class would hold the volume twice."""

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (piece := self.read(min(1 << 16, len(view) - filled))):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled


def open_nifti(path: Path) -> IO[bytes]:
    """Open a NIfTI file for reading; decompress it if its content, whatever its name, is gzip."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return _Gzip(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


def cut_short(path: Path) -> VolumeError:
    """Return the error for a file that ends early or has damaged compressed data."""
    return VolumeError(
        f"'{path.name}' is cut short or damaged: its data ends before the image is complete; "
        "copy or download it again."
    )


def read_nifti_header(path: Path) -> tuple[Any, Any]:
    """Return the unchecked header of a single-file NIfTI and its nibabel image class."""
    try:
        with open_nifti(path) as file:
            block = file.read(540)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise cut_short(path) from error
    # nibabel derives the byte order from the number of dimensions, which may be damaged.
    order = "<" if int.from_bytes(block[:4], "little") in (348, 540) else ">"
    size = int.from_bytes(block[:4], "little" if order == "<" else "big")
    image_class = nib.Nifti2Image if size == 540 else nib.Nifti1Image
    magic = block[4:8] if size == 540 else block[344:348]
    if size not in (348, 540) or magic[:2] not in (b"n+", b"ni"):
        raise VolumeError(f"'{path.name}' is not a NIfTI image: it does not begin with a NIfTI header.")
    if len(block) < size:
        raise cut_short(path)
    if magic[:2] == b"ni":
        raise VolumeError(
            f"'{path.name}' is one half of a NIfTI pair (.hdr and .img); save it as a single .nii.gz file."
        )
    return image_class.header_class(block[:size], endianness=order, check=False), image_class
