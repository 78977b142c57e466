"""The text headers of NRRD and MetaImage files: where the voxels are and how they are packed.

SimpleITK reads these formats; only what it does not tell before it allocates is read here.
"""

from __future__ import annotations

import math
from pathlib import Path

from medsam_app.errors import VolumeError

#: A header longer than this is not a header.
_LONGEST = 1 << 20


def check_text_header(path: Path, format: str) -> tuple[float, Path | None]:
    """How far the voxels are compressed at most, and the file they are in when it is another.

    Returns:
        the most bytes that one byte of the file can become (1 for raw, inf where unbounded), and the
        path of the detached data file or None.

    Raises:
        VolumeError: not of the format, or its data file is missing or outside the header's folder.
    """
    fields = _nrrd_fields(path) if format == "nrrd" else _meta_fields(path)
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
        # eight bytes at most come of a one-digit number and its blank
        expansion = 8.0 if fields.get("binarydata", "true").lower() == "false" else 1.0
        if fields.get("compresseddata", "false").lower() == "true":
            expansion = 1032.0
        name = fields.get("elementdatafile", "LOCAL")
        name = None if name.upper() == "LOCAL" else name
    return expansion, None if name is None else _data_file(path, name)


def _data_file(path: Path, name: str) -> Path:
    if name.upper().startswith("LIST") or "%" in name:
        raise VolumeError(
            f"'{path.name}' is spread over several data files; save it as one .nii.gz or .nrrd file."
        )
    folder = path.parent.resolve()
    data = (folder / name).resolve()
    # A header from elsewhere must not make the program read any file of this machine.
    if not data.is_relative_to(folder):
        raise VolumeError(
            f"'{path.name}' points to voxels outside its own folder ('{name}'); put both in one folder."
        )
    if not data.is_file():
        raise VolumeError(
            f"'{path.name}' keeps its voxels in '{name}', which is missing; put it in the same folder."
        )
    return data


def _text(path: Path, until: bytes) -> str:
    with path.open("rb") as file:
        block = file.read(_LONGEST).replace(b"\r\n", b"\n")
    return block.split(until)[0].decode("latin-1")


def _nrrd_fields(path: Path) -> dict[str, str]:
    text = _text(path, b"\n\n")
    if not text.startswith("NRRD"):
        raise VolumeError(f"'{path.name}' is not an NRRD image: it does not begin with 'NRRD'.")
    lines = [line.split(":", 1) for line in text.splitlines()[1:] if ":" in line and not line.startswith("#")]
    return {key.strip().lower(): value.strip() for key, value in lines if not value.startswith("=")}


def _meta_fields(path: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in _text(path, b"\0").splitlines():
        key, equals, value = line.partition("=")
        if not equals or not key.strip().isascii():
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":  # the header ends here
            return fields
    raise VolumeError(f"'{path.name}' is not a MetaImage: it has no header with an ElementDataFile.")
