"""Text headers of NRRD and MetaImage files: location and packing of the voxels.

SimpleITK reads these formats. This module reads only the fields that SimpleITK does not expose before it
allocates memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from medsam_app.errors import VolumeError

#: Largest number of header bytes that are read.
_LONGEST = 1 << 20


@dataclass(frozen=True)
class Packing:
    """Storage of voxels in a file.

    Attributes:
        expansion: largest number of bytes that one byte of the file unpacks to (1 raw, inf unbounded).
        data_file: separate file with the voxels, if any.
        offset: header bytes before the voxels; 0 if these are in another file or compressed.
    """

    expansion: float
    data_file: Path | None
    offset: int


def check_text_header(path: Path, format: str) -> Packing:
    """Return the storage of the voxels.

    Raises:
        VolumeError: the file does not have the format, or its data file is missing or outside its folder.
    """
    fields, length = _nrrd_fields(path) if format == "nrrd" else _meta_fields(path)
    if format == "nrrd":
        encoding = fields.get("encoding", "raw").lower()
        expansion = {
            "raw": 1.0,
            "gzip": 1032.0,
            "gz": 1032.0,
            "txt": 8.0,
            "text": 8.0,
            "ascii": 8.0,
            "hex": 1.0,
        }.get(encoding, math.inf)
        name = fields.get("data file", fields.get("datafile"))
    else:
        # Text: a one-digit number and a blank become eight bytes at most.
        expansion = 8.0 if fields.get("binarydata", "true").lower() == "false" else 1.0
        if fields.get("compresseddata", "false").lower() == "true":
            expansion = 1032.0
        name = fields.get("elementdatafile", "LOCAL")
        name = None if name.upper() == "LOCAL" else name
    data_file = None if name is None else _data_file(path, name)
    return Packing(expansion, data_file, 0 if data_file or expansion != 1 else length)


def _data_file(path: Path, name: str) -> Path:
    if name.upper().startswith("LIST") or "%" in name:
        raise VolumeError(
            f"'{path.name}' is spread over several data files; save it as one .nii.gz or .nrrd file."
        )
    if not name.isprintable():
        raise VolumeError(
            f"'{path.name}' is damaged: its header names no readable data file; export it again."
        )
    folder = path.parent.resolve()
    data = (folder / name).resolve()
    # A header from another source must not give access to arbitrary files of this machine.
    if not data.is_relative_to(folder):
        raise VolumeError(
            f"'{path.name}' points to voxels outside its own folder ('{name}'); put both in one folder."
        )
    if not data.is_file():
        raise VolumeError(
            f"'{path.name}' keeps its voxels in '{name}', which is missing; put it in the same folder."
        )
    return data


def _block(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LONGEST)


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields by name in lower case, and the length of the header in bytes."""
    block = _block(path)
    if not block.startswith(b"NRRD"):
        raise VolumeError(f"'{path.name}' is not an NRRD image: it does not begin with 'NRRD'.")
    end = re.search(rb"\r?\n\r?\n", block)
    text = block[: end.start() if end else None].decode("latin-1")
    lines = [line.split(":", 1) for line in text.splitlines()[1:] if ":" in line and not line.startswith("#")]
    fields = {key.strip().lower(): value.strip() for key, value in lines if not value.startswith("=")}
    return fields, end.end() if end else 0


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields by name in lower case, and the length of the header in bytes."""
    fields: dict[str, str] = {}
    length = 0
    for line in _block(path).split(b"\n"):
        length += len(line) + 1
        key, equals, value = line.decode("latin-1").partition("=")
        name = key.strip().lower()
        if not equals or not name.isascii():
            break
        fields[name] = value.strip()
        if name == "elementdatafile":  # the header ends here
            packed = fields.get("compresseddatasize", "")
            if (
                value.strip().upper() == "LOCAL"
                and packed.isdigit()
                and length + int(packed) > path.stat().st_size
            ):
                break_off = "its data ends before the image is complete; copy or download it again."
                raise VolumeError(f"'{path.name}' is cut short or damaged: {break_off}")
            return fields, length
    raise VolumeError(f"'{path.name}' is not a MetaImage: it has no header with an ElementDataFile.")
