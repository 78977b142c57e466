"""MONAI readers for medical volumes.

`NiftiReader` extends MONAI's `NibabelReader`: it opens files by content, reads one frame, scales to float32
and verifies the checksum. `ItkReader` and `DicomReader` are MONAI `ImageReader`s based on SimpleITK. All of
them also work in `monai.transforms.LoadImage(reader=...)`. Importing this module imports MONAI, which takes
seconds, so `medsam_app.io.loading` imports it only to read voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monai.data.image_reader import ImageReader, NibabelReader
from monai.utils import MetaKeys, SpaceKeys
from nibabel.fileslice import fileslice
from numpy.typing import NDArray

from medsam_app.grid.geometry import flip_affine
from medsam_app.io.dicom.series import Slice
from medsam_app.io.dicom.stack import result_type
from medsam_app.io.formats import file_type
from medsam_app.io.headers import HeaderInfo, find_format, itk_affine, sitk_reader
from medsam_app.io.nifti_header import open_nifti, read_nifti_header


def _path(data: Any) -> Path:
    """Return the single path that MONAI passes to a reader."""
    return Path(data[0] if isinstance(data, (tuple, list)) else data)


def _meta(affine: NDArray[np.float64], array: NDArray) -> dict[str, Any]:
    return {
        MetaKeys.AFFINE: affine,
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape[:3]),
        MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        MetaKeys.SPACE: SpaceKeys.RAS,
    }


class NiftiReader(NibabelReader):
    """NIfTI reader based on MONAI's.

    Differences from the base class: gzip is recognised by content; the affine is nibabel's, unchanged (the
    base class rewrites it if the voxel sizes disagree, which would move saved masks); one frame and channel
    is read; scaled values become float32 without a float64 copy of the volume.

    Args:
        frame: frame to read, from 0.
        channel: channel to read, from 0.
    """

    def __init__(self, *, frame: int = 0, channel: int = 0) -> None:
        super().__init__()
        self.frame, self.channel = frame, channel

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Read a file; see MONAI's `ImageReader.read`."""
        path = _path(data)
        self.filenames = [path]
        _, image_class = read_nifti_header(path)
        self._file = open_nifti(path)
        # No memory map: the file may be replaced while the volume is in use.
        image = image_class.from_file_map(image_class.make_file_map({"image": self._file}), mmap=False)
        self.header = image.header
        return image

    def get_data(self, img: Any) -> tuple[NDArray, dict]:
        """Return array and metadata; see MONAI's `ImageReader.get_data`."""
        with self._file:
            array, meta = super().get_data(img)
            # gzip verifies its checksum only at the end of the file.
            while self._file.read(1 << 16):
                pass
        return array, meta

    def _get_array_data(self, img: Any, filename: Any) -> NDArray:
        proxy = img.dataobj
        shape = tuple(img.shape) + (1,) * (5 - len(img.shape))
        if np.prod(shape[3:]) == 1:
            array = proxy.get_unscaled().reshape(shape[:3], order="F")
        else:
            pick = (slice(None), slice(None), slice(None), self.frame, self.channel)[: len(img.shape)]
            array = fileslice(self._file, pick, img.shape, proxy.dtype, proxy.offset, order="F")
        if not array.dtype.isnative:
            array = array.byteswap(inplace=array.flags.writeable).view(array.dtype.newbyteorder("="))
        return _scaled(array, float(proxy.slope), float(proxy.inter))


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


class ItkReader(ImageReader):
    """NRRD and MetaImage reader based on SimpleITK, with the affine in RAS.

    Args:
        frame: frame to read, from 0.
        channel: channel to read, from 0.
    """

    def __init__(self, *, frame: int = 0, channel: int = 0) -> None:
        self.frame, self.channel = frame, channel

    def verify_suffix(self, filename: Any) -> bool:
        """Return whether this reader can read a file."""
        kind = file_type(_path(filename).name)
        return kind is not None and kind.format in ("nrrd", "meta")

    def read(self, data: Any, **kwargs: Any) -> sitk.Image:
        """Read a file; see MONAI's `ImageReader.read`."""
        path = _path(data)
        return sitk_reader(path, find_format(path)).Execute()

    def get_data(self, img: sitk.Image) -> tuple[NDArray, dict]:
        """Return array and metadata; see MONAI's `ImageReader.get_data`."""
        array = _shared(img)  # ([t,] k, j, i [, c])
        total = array.size
        if img.GetNumberOfComponentsPerPixel() > 1:
            array = array[..., self.channel]
        if array.ndim == 4:
            array = array[self.frame]
        if array.size < total:  # release the other frames and channels
            array = array.copy(order="C")
        array = _scaled(array.transpose(2, 1, 0), 1.0, 0.0)
        meta = _meta(flip_affine(itk_affine(img)), array)
        self.keys = set(img.GetMetaDataKeys())
        return array, meta


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


class DicomReader(ImageReader):
    """Reader of ordered DICOM slices based on SimpleITK.

    GDCM decodes compressed syntaxes and applies rescale slope and intercept. Each file is read separately,
    because slope and intercept may differ between slices (PET).

    Args:
        slices: slices in the order of `medsam_app.io.dicom.stack.stack`.
        affine: (4, 4) voxel indices to mm in RAS, from `stack`.
    """

    def __init__(self, slices: Sequence[Slice], affine: NDArray[np.float64]) -> None:
        self.slices, self.affine = list(slices), affine

    def verify_suffix(self, filename: Any) -> bool:
        """Return whether this reader can read a file."""
        return _path(filename).suffix.lower() == ".dcm"

    def read(self, data: Any = None, **kwargs: Any) -> list[Slice]:
        """Read a file; see MONAI's `ImageReader.read`."""
        return self.slices

    def get_data(self, img: list[Slice]) -> tuple[NDArray, dict]:
        """Return array and metadata; see MONAI's `ImageReader.get_data`."""
        columns, rows, _ = img[0].size
        array = np.empty((len(img), rows, columns), dtype=result_type(img))
        for number, item in enumerate(img):
            if number == 0 or item.path != img[number - 1].path:  # all frames of a file are read at once
                image = sitk_reader(item.path, "dicom").Execute()
                planes = sitk.GetArrayViewFromImage(image).reshape(-1, rows, columns)
            plane = planes[item.frame]
            factor, offset = item.rescale
            array[number] = plane if item.rescale == (1.0, 0.0) else plane * factor + offset
        volume = array.transpose(2, 1, 0)
        return volume, _meta(self.affine, volume)


def reader_for(info: HeaderInfo, *, frame: int, channel: int) -> ImageReader:
    """Return the reader for a checked single-file volume."""
    return (NiftiReader if info.format == "nifti" else ItkReader)(frame=frame, channel=channel)
