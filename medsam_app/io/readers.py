"""Voxels of NIfTI, NRRD, MetaImage and DICOM files.

nibabel reads NIfTI and SimpleITK all else. Integers without scaling keep their type; all other values become
float32. `medsam_app.io.monai_reader` makes the same reading available to MONAI's transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.fileslice import fileslice
from numpy.typing import NDArray

from medsam_app.grid.geometry import flip_affine
from medsam_app.io.dicom.series import Slice
from medsam_app.io.dicom.stack import result_type
from medsam_app.io.formats import Format
from medsam_app.io.headers import itk_affine, sitk_reader
from medsam_app.io.nifti_header import open_nifti, read_nifti_header


class NiftiVoxels(NamedTuple):
    """Voxels and header of a NIfTI file.

    Attributes:
        array: (i, j, k) voxels.
        affine: (4, 4) voxel indices to mm in RAS, as nibabel chooses it from the header.
        header: header of the file.
    """

    array: NDArray
    affine: NDArray[np.float64]
    header: nib.Nifti1Header


class ItkVoxels(NamedTuple):
    """Voxels and metadata of a file that SimpleITK reads.

    Attributes:
        array: (i, j, k) voxels.
        affine: (4, 4) voxel indices to mm in RAS.
        keys: names of the header's fields, as ITK spells them.
    """

    array: NDArray
    affine: NDArray[np.float64]
    keys: frozenset[str]


def read_nifti(path: Path, *, frame: int = 0, channel: int = 0) -> NiftiVoxels:
    """Read one frame and channel of a NIfTI file; gzip is recognised by content.

    Args:
        path: file.
        frame: number of the frame, from 0.
        channel: number of the channel, from 0.
    """
    _, image_class = read_nifti_header(path)
    with open_nifti(path) as file:
        # No memory map: the file may be replaced while the volume is in use.
        image = image_class.from_file_map(image_class.make_file_map({"image": file}), mmap=False)
        proxy = image.dataobj
        shape = tuple(image.shape) + (1,) * (5 - len(image.shape))
        if np.prod(shape[3:]) == 1:
            array = proxy.get_unscaled().reshape(shape[:3], order="F")
        else:
            pick = (slice(None), slice(None), slice(None), frame, channel)[: len(image.shape)]
            array = fileslice(file, pick, image.shape, proxy.dtype, proxy.offset, order="F")
        if not array.dtype.isnative:
            array = array.byteswap(inplace=array.flags.writeable).view(array.dtype.newbyteorder("="))
        array = _scaled(array, float(proxy.slope), float(proxy.inter))
        # gzip verifies its checksum only at the end of the file.
        while file.read(1 << 16):
            pass
    return NiftiVoxels(array, image.affine, image.header)


def _scaled(array: NDArray, slope: float, inter: float) -> NDArray:
    """Return values times slope plus inter as float32; integers without scaling are unchanged.

    Values are converted slice by slice, which avoids a float64 copy of the volume.
    """
    unscaled = slope == 1 and inter == 0
    if unscaled and (array.dtype.kind in "iu" or array.dtype == np.float32):
        return array
    out = np.empty(array.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported later as infinite values
        for k in range(array.shape[-1]):
            out[..., k] = array[..., k] if unscaled else array[..., k] * slope + inter
    return out


def read_itk(path: Path, format: Format, *, frame: int = 0, channel: int = 0) -> ItkVoxels:
    """Read one frame and channel of an NRRD or MetaImage file.

    Args:
        path: file.
        format: format of the file.
        frame: number of the frame, from 0.
        channel: number of the channel, from 0.
    """
    image = sitk_reader(path, format).Execute()
    array = _shared(image)  # ([t,] k, j, i [, c])
    total = array.size
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = array[..., channel]
    if array.ndim == 4:
        array = array[frame]
    if array.size < total:  # release the other frames and channels
        array = array.copy(order="C")
    array = _scaled(array.transpose(2, 1, 0), 1.0, 0.0)
    return ItkVoxels(array, flip_affine(itk_affine(image)), frozenset(image.GetMetaDataKeys()))


class _Pixels:
    """Buffer of a SimpleITK image that keeps the image alive while an array uses it."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        view = sitk.GetArrayViewFromImage(image)  # gives the image a buffer that it does not share
        address, _ = view.__array_interface__["data"]
        self.__array_interface__ = view.__array_interface__ | {"data": (address, False)}


def _shared(image: sitk.Image) -> NDArray:
    """Return the pixels of an image as a writable array, without a copy."""
    return np.asarray(_Pixels(image))


def read_dicom(slices: Sequence[Slice]) -> NDArray:
    """Read ordered DICOM slices into an (i, j, k) array.

    GDCM decodes compressed syntaxes and applies rescale slope and intercept. Each file is read separately,
    because slope and intercept may differ between slices (PET).

    Args:
        slices: slices in the order of `medsam_app.io.dicom.stack.stack`.
    """
    columns, rows, _ = slices[0].size
    array = np.empty((len(slices), rows, columns), dtype=result_type(list(slices)))
    for number, item in enumerate(slices):
        if number == 0 or item.path != slices[number - 1].path:  # all frames of a file are read at once
            image = sitk_reader(item.path, "dicom").Execute()
            planes = sitk.GetArrayViewFromImage(image).reshape(-1, rows, columns)
        plane = planes[item.frame]
        factor, offset = item.rescale
        array[number] = plane if item.rescale == (1.0, 0.0) else plane * factor + offset
    return array.transpose(2, 1, 0)
