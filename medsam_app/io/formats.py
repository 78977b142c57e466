"""Table of supported file formats, and functions on file names.

All lists of file endings in the package are derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

Format = Literal["nifti", "nrrd", "meta", "dicom"]

#: Names of the formats in messages.
TITLES: dict[Format, str] = {"nifti": "NIfTI", "nrrd": "NRRD", "meta": "MetaImage", "dicom": "DICOM"}

#: Default ending of mask files.
DEFAULT_SUFFIX = ".nii.gz"
#: Ending of a DICOM segmentation.
SEGMENTATION = ".seg.dcm"


@dataclass(frozen=True, kw_only=True)
class FileType:
    """A kind of file that can be read as a volume, recognised by the ending of its name.

    Attributes:
        suffix: ending in lower case, with its dots. No ending is a suffix of another one.
        format: format of the content.
        mask_suffix: ending of a mask saved in the format of such an image.
        writable: whether `save_mask` writes files with this ending.
        listed: whether the browser lists such files on the server.
        uploadable: whether the browser may upload a single such file, because it may be complete without
            further files.
    """

    suffix: str
    format: Format
    mask_suffix: str
    writable: bool = True
    listed: bool = True
    uploadable: bool = True


FILE_TYPES = (
    FileType(suffix=".nii", format="nifti", mask_suffix=".nii"),
    FileType(suffix=".nii.gz", format="nifti", mask_suffix=".nii.gz"),
    FileType(suffix=".nrrd", format="nrrd", mask_suffix=".nrrd"),
    FileType(suffix=".mha", format="meta", mask_suffix=".mha"),
    # The voxels are in a second file.
    FileType(suffix=".mhd", format="meta", mask_suffix=".mha", uploadable=False),
    FileType(suffix=".zip", format="dicom", mask_suffix=SEGMENTATION, writable=False),
    # Complete only if multi-frame. The browser lists the folder of the slices instead.
    FileType(suffix=".dcm", format="dicom", mask_suffix=SEGMENTATION, writable=False, listed=False),
)

SUFFIXES = tuple(kind.suffix for kind in FILE_TYPES)
LISTED = tuple(kind.suffix for kind in FILE_TYPES if kind.listed)
UPLOADABLE = tuple(kind.suffix for kind in FILE_TYPES if kind.uploadable)
#: Endings of masks that `save_mask` writes, the default first.
WRITABLE = (
    DEFAULT_SUFFIX,
    *(kind.suffix for kind in FILE_TYPES if kind.writable and kind.suffix != DEFAULT_SUFFIX),
)
#: Endings of files that hold one volume, with or without a data file next to them.
SINGLE_VOLUMES = tuple(kind.suffix for kind in FILE_TYPES if kind.format != "dicom")
#: Endings of files that hold slices of a series together with the other files of their folder.
DICOM_SLICES = (".dcm", ".ima", ".dic", ".dicom")
#: Readable formats, for messages.
READABLE = f"{', '.join(SINGLE_VOLUMES)}, a folder or a .zip of DICOM slices"

#: Endings of masks by format name, as used in options and requests.
MASK_SUFFIXES = {"nifti": DEFAULT_SUFFIX, "nrrd": ".nrrd", "mha": ".mha", "dicom-seg": SEGMENTATION}


def file_type(name: str) -> FileType | None:
    """Return the type of a file by the ending of its name in any case, or None if it is unknown."""
    lower = name.lower()
    return next((kind for kind in FILE_TYPES if lower.endswith(kind.suffix)), None)


def stem(name: str | PurePath) -> str:
    """Return a name, or the last part of a path, without the ending of a volume.

    'x' of 'x.nii.gz', 'x.y' of 'x.y', '' of '.nii.gz'.
    """
    name = name.name if isinstance(name, PurePath) else name
    kind = file_type(name)
    return name if kind is None else name[: -len(kind.suffix)]


def is_volume(path: PurePath) -> bool:
    """Return whether a file has the ending of a volume and is not hidden (as macOS's '._x.nii.gz' is)."""
    return not path.name.startswith(".") and file_type(path.name) is not None


def mask_suffix_for(image: PurePath) -> str:
    """Return the ending of a mask in the format of its image; a folder or other file counts as DICOM."""
    kind = file_type(image.name)
    return SEGMENTATION if kind is None else kind.mask_suffix
