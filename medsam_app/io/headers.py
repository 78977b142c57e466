"""Validation of file headers before memory is allocated.

A header declares the number and type of the voxels. Before a reader allocates memory for them, the declared
size is compared with the size of the file and the memory of the machine. A damaged or hostile header thus
raises an error instead of exhausting the memory. No voxels are read here and MONAI is not imported, so
errors are raised without delay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medsam_app.atomic import as_text, is_text
from medsam_app.errors import SeriesChoice, VolumeError
from medsam_app.io.checks import checked_affine
from medsam_app.io.formats import READABLE, TITLES, Format, file_type
from medsam_app.io.nifti_header import read_nifti_header
from medsam_app.io.text_headers import check_text_header
from medsam_app.system import format_bytes, machine_memory

#: Largest compression ratio of Deflate (a property of the format).
DEFLATE_LIMIT = 1032


@dataclass(frozen=True)
class HeaderInfo:
    """Voxels declared by a header.

    Attributes:
        shape: voxels along (i, j, k).
        frames: number of volumes (time points, echoes, ...).
        channels: number of values per voxel.
        dtype: stored type of a value.
        offset: bytes before the first voxel in the file.
    """

    format: Format
    shape: tuple[int, int, int]
    frames: int
    channels: int
    dtype: np.dtype
    offset: int = 0

    @property
    def rgb(self) -> bool:
        """Whether the values are probably colours: three or four bytes per voxel."""
        return self.dtype == np.uint8 and self.channels in (3, 4)


def find_format(path: Path) -> Format:
    """Return the format by content and name; raise `VolumeError` for an unknown one."""
    if not path.exists():
        raise VolumeError(f"There is no file or folder '{path}'; check the path.")
    if path.is_dir():
        return "dicom"
    if path.stat().st_size == 0:
        raise VolumeError(f"'{path.name}' is empty (0 bytes); copy or download it again.")
    known = file_type(path.name)
    if known is not None:
        return known.format
    with path.open("rb") as file:
        if file.read(132)[128:] == b"DICM":
            return "dicom"
    kind = f"'{path.suffix}' files" if path.suffix else "files without an extension"
    raise VolumeError(f"'{path.name}' cannot be opened: {kind} are not supported; give {READABLE}.")


def looks_like_dicom(start: bytes) -> bool:
    """Return whether the first 132 bytes of a file are those of a DICOM file (with or without preamble)."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\x02\0", b"\x08\0") and len(start) == 132)


def inspect_nifti(path: Path) -> HeaderInfo:
    """Return the checked header of a NIfTI file; raise `VolumeError` if it does not describe a volume."""
    header, _ = read_nifti_header(path)
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise VolumeError(f"'{path.name}' is damaged: its header gives {dim[0]} dimensions; export it again.")
    sizes = dim[1 : dim[0] + 1] + [1] * (7 - dim[0])
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError:  # undefined datatype code
        dtype = np.dtype("V0")
    if dtype.itemsize == 0:  # undefined, or not supported by nibabel (single bits)
        raise VolumeError(
            f"'{path.name}' holds values of NIfTI datatype {code}, which cannot be read; "
            "save it as int16 or float32."
        )
    if dtype.fields is not None:
        raise _refuse_rgb(path)
    _check_shape(path, sizes[:3])
    if min(sizes) < 1 or sizes[5] > 1 or sizes[6] > 1:
        raise VolumeError(
            f"'{path.name}' has dimensions {tuple(dim[1 : dim[0] + 1])}; "
            "at most a frame and a channel axis may follow the three of space."
        )
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**40:
        raise VolumeError(
            f"'{path.name}' is damaged: its header puts the voxels at byte {offset:g}; export it again."
        )
    info = HeaderInfo(
        "nifti",
        (sizes[0], sizes[1], sizes[2]),
        sizes[3],
        sizes[4],
        dtype,
        max(int(offset), header.single_vox_offset),
    )
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    check_size(path, info, DEFLATE_LIMIT if compressed else 1)
    return info


def inspect_itk(path: Path, format: Format) -> HeaderInfo:
    """Return the checked header of an NRRD or MetaImage file; raise `VolumeError` if it is no volume."""
    packing = check_text_header(path, format)
    reader = sitk_reader(path, format)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise not_read(path, format) from error
    size = [int(n) for n in reader.GetSize()]
    if len(size) > 4:
        raise VolumeError(f"'{path.name}' has {len(size)} dimensions; at most a frame axis may follow space.")
    size += [1] * (4 - len(size))
    pixel = reader.GetPixelIDValue()
    if pixel in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise refuse_complex(path)
    dtype = _SITK_TYPES.get(pixel)
    if dtype is None:
        raise VolumeError(
            f"'{path.name}' holds values of type {sitk.GetPixelIDValueAsString(pixel)}; save it as int16 "
            "or float32."
        )
    _check_shape(path, size[:3])
    checked_affine(path.name, itk_affine(reader))  # ITK's own error would not help the user
    info = HeaderInfo(
        format,
        (size[0], size[1], size[2]),
        size[3],
        reader.GetNumberOfComponents(),
        np.dtype(dtype),
        packing.offset,
    )
    check_size(path, info, packing.expansion, packing.data_file)
    return info


_SITK_TYPES = {
    getattr(sitk, f"sitk{vector}{name}"): dtype
    for vector in ("", "Vector")
    for name, dtype in {
        "UInt8": "u1", "Int8": "i1", "UInt16": "u2", "Int16": "i2", "UInt32": "u4", "Int32": "i4",
        "UInt64": "u8", "Int64": "i8", "Float32": "f4", "Float64": "f8",
    }.items()
}  # fmt: skip


def sitk_reader(path: Path, format: Format) -> sitk.ImageFileReader:
    """Return a SimpleITK reader for one file, with its format fixed.

    Raises:
        VolumeError: the path is not UTF-8, which would crash SimpleITK.
    """
    if not is_text(str(path)):
        raise VolumeError(
            f"'{as_text(path.name)}' cannot be opened: its name, or that of a folder above, is not UTF-8; "
            "rename it."
        )
    reader = sitk.ImageFileReader()
    reader.SetImageIO({"nrrd": "NrrdImageIO", "meta": "MetaImageIO", "dicom": "GDCMImageIO"}[format])
    reader.SetFileName(str(path))
    return reader


def not_read(path: Path, format: Format) -> VolumeError:
    """Return the error for a file that SimpleITK cannot read."""
    return VolumeError(
        f"'{path.name}' could not be read as {TITLES[format]}: it is damaged or not of that format; export "
        "it again."
    )


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> NDArray[np.float64]:
    """Return the (4, 4) affine of a SimpleITK image to mm in LPS, without a frame axis."""
    size = image.GetDimension()
    affine = np.eye(4)
    space = min(size, 3)
    direction = np.asarray(image.GetDirection()).reshape(size, size)[:space, :space]
    affine[:space, :space] = direction * np.asarray(image.GetSpacing())[:space]
    affine[:space, 3] = image.GetOrigin()[:space]
    return affine


def _refuse_rgb(path: Path) -> VolumeError:
    return VolumeError(
        f"'{path.name}' holds colours (RGB), but one intensity a voxel is needed; convert it to grey "
        "values first, "
        "or take the original scan if this is a screenshot or an overlay."
    )


def refuse_complex(path: Path) -> VolumeError:
    """Return the error for complex values."""
    return VolumeError(
        f"'{path.name}' holds complex values, but one intensity a voxel is needed; save its magnitude first."
    )


def _check_shape(path: Path, shape: list[int]) -> None:
    if min(shape) < 1:
        raise VolumeError(f"'{path.name}' has no voxels: its shape is {tuple(shape)}; export it again.")
    if min(shape) == 1:
        raise VolumeError(
            f"'{path.name}' is 2D (shape {tuple(shape)}), but a 3D volume of two slices or more is needed; "
            "give the whole series."
        )


def check_size(path: Path, info: HeaderInfo, expansion: float, data_file: Path | None = None) -> None:
    """Compare the size declared by a header with the size of the file and the memory of the machine.

    Args:
        path: the file with the header.
        info: the header.
        expansion: largest number of bytes that one byte of the file unpacks to (1 uncompressed, inf unknown).
        data_file: file with the voxels, if not `path`.

    Raises:
        VolumeError: the values are complex, the file is too small, or the machine has too little memory.
    """
    if info.dtype.kind == "c":
        raise refuse_complex(path)
    voxels = math.prod(info.shape) * info.frames * info.channels * info.dtype.itemsize
    size = (data_file or path).stat().st_size
    needed = voxels + info.offset
    if needed > size * expansion:
        raise VolumeError(
            f"'{path.name}' is cut short or its header is wrong: its header promises {format_bytes(needed)}, "
            f"which a file of {format_bytes(size)} cannot hold; copy or download it again."
        )
    memory = machine_memory()
    if memory is not None and voxels > memory:
        raise VolumeError(
            f"'{path.name}' needs {format_bytes(voxels)} of memory, but this machine has "
            f"{format_bytes(memory)}; "
            "crop or downsample it first."
        )


def choose(path: Path, info: HeaderInfo, *, frame: int | None, channel: int | None) -> tuple[int, int]:
    """Return the frame and channel to read; raise `SeriesChoice` if there are several and none is chosen."""
    if info.rgb and channel is None:
        raise _refuse_rgb(path)
    chosen = []
    for option, count, number in (("frame", info.frames, frame), ("channel", info.channels, channel)):
        if number is None and count > 1:
            raise SeriesChoice(
                f"'{path.name}' holds {count} {option}s; "
                f"choose one of 0 to {count - 1} with the option '{option}'.",
                option=option,
                choices=[(str(index), f"{option} {index} of {count}") for index in range(count)],
            )
        if number is not None and not 0 <= number < count:
            available = f"{option}s 0 to {count - 1}" if count > 1 else f"one {option} (number 0)"
            raise VolumeError(f"'{path.name}' has no {option} {number}; it has {available}.")
        chosen.append(number or 0)
    return chosen[0], chosen[1]


def inspect(path: Path, format: Format) -> HeaderInfo:
    """Return the checked header of a single-file volume."""
    return inspect_nifti(path) if format == "nifti" else inspect_itk(path, format)
