"""Loading of volumes and masks in any supported format.

`medsam_app.io.readers` reads the voxels; this module validates them and reports problems in notes and errors.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medsam_app.errors import GridMismatch, VolumeError
from medsam_app.grid.geometry import Grid, flip_affine
from medsam_app.io.archive import unpacked
from medsam_app.io.checks import checked_affine, nifti_notes
from medsam_app.io.dicom import series as dicom
from medsam_app.io.dicom import stack as dicom_stack
from medsam_app.io.dicom.series import SeriesInfo
from medsam_app.io.formats import Format
from medsam_app.io.headers import choose, find_format, inspect, itk_affine, not_read, sitk_reader
from medsam_app.io.nifti_header import cut_short, read_nifti_header
from medsam_app.io.readers import read_dicom, read_itk, read_nifti
from medsam_app.io.volume import Volume, make_volume
from medsam_app.system import machine_fault


def load_volume(
    path: str | Path, *, series: str | None = None, frame: int | None = None, channel: int | None = None
) -> Volume:
    """Read a volume: .nii, .nii.gz, .nrrd, .mha, .mhd, or a folder or .zip of DICOM slices.

    Args:
        path: file or folder.
        series: UID or number (from 1, in the order of `list_series`) of a DICOM series.
        frame: number from 0 of a time point or echo.
        channel: number from 0 of a value of multi-channel voxels.

    Raises:
        SeriesChoice: there are several series, frames or channels and none is chosen.
        VolumeError: the path cannot be used as a volume; the message gives the reason and a remedy.
    """
    path = Path(path).expanduser()
    if find_format(path) == "dicom":
        return _load_dicom(path, series, frame, channel)
    if series is not None:
        raise VolumeError(f"'{path.name}' is not DICOM and has no series; leave the option 'series' out.")
    array, affine, fields = _read_file(path, frame, channel)
    return make_volume(path.name, array, affine, source=path, **fields)


def read_grid(path: Path) -> Grid:
    """Return the grid of a volume, from its header alone; DICOM is read completely.

    Raises:
        MedsamError: the path cannot be used as a volume.
    """
    format = find_format(path)
    if format == "dicom":
        return load_volume(path).grid
    shape = inspect(path, format).shape
    if format == "nifti":
        affine = read_nifti_header(path)[0].get_best_affine()
    else:
        reader = sitk_reader(path, format)
        reader.ReadImageInformation()
        affine = flip_affine(itk_affine(reader))
    return Grid(shape, checked_affine(path.name, affine))


def _read_file(
    path: Path, frame: int | None, channel: int | None
) -> tuple[NDArray, NDArray[np.float64], dict[str, Any]]:
    """Return voxels, affine and further attributes of `Volume` for a single-file volume."""
    format = find_format(path)
    with _reading(path, format):
        info = inspect(path, format)
        frame, channel = choose(path, info, frame=frame, channel=channel)
        fields: dict[str, Any] = {"frame": frame, "channel": channel}
        if format == "nifti":
            array, affine, header = read_nifti(path, frame=frame, channel=channel)
            fields["notes"], fields["nifti_geometry"] = nifti_notes(header)
            fields["nifti_codes"] = (int(header["qform_code"]), int(header["sform_code"]))
        else:
            array, affine, keys = read_itk(path, format, frame=frame, channel=channel)
            if format == "nrrd" and "NRRD_space" not in keys:
                fields["notes"] = ("The header names no patient space: left and right may be swapped.",)
    return array, affine, fields


@contextmanager
def _reading(path: Path, format: Format) -> Iterator[None]:
    """Turn errors of the reading libraries and of the system into sentences."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise cut_short(path) from error
    except MemoryError as error:
        raise VolumeError(
            f"'{path.name}' does not fit the free memory; crop or downsample it first."
        ) from error
    except (OSError, HeaderDataError) as error:
        if isinstance(error, PermissionError):
            raise VolumeError(
                f"'{path.name}' may not be read by this user; change its permissions."
            ) from error
        fault = machine_fault(path, error) if isinstance(error, OSError) else None
        raise fault or cut_short(path) from error
    except RuntimeError as error:  # SimpleITK
        raise not_read(path, format) from error


def _load_dicom(path: Path, series: str | None, frame: int | None, channel: int | None) -> Volume:
    if channel not in (None, 0):
        raise VolumeError(
            f"'{path.name}' is DICOM with one channel (number 0); leave the option 'channel' out."
        )
    with _reading(path, "dicom"), unpacked(path) as (folder, files):
        slices_by_series, notes = dicom.scan(path.name, folder, files)
        slices = dicom.pick_series(path.name, slices_by_series, series)
        stack = dicom_stack.stack(path.name, slices)
        number = dicom_stack.pick_frame(path.name, stack, frame)
        return make_volume(
            path.name,
            read_dicom(stack.frames[number]),
            stack.affine,
            source=path,
            modality=stack.modality,
            notes=notes + stack.notes,
            series=slices[0].series or None,
            frame=number,
        )


def list_series(path: str | Path) -> list[SeriesInfo]:
    """Return the image series of a DICOM folder or .zip; an empty list for a file that is not DICOM.

    Raises:
        VolumeError: there are no DICOM images, or they cannot be read.
    """
    path = Path(path).expanduser()
    if find_format(path) != "dicom":
        return []
    with _reading(path, "dicom"), unpacked(path) as (folder, files):
        return dicom.series_list(dicom.scan(path.name, folder, files)[0])


def load_mask(path: str | Path, grid: Grid) -> NDArray:
    """Read an (i, j, k) integer label map on a grid, 0 = background.

    Raises:
        VolumeError: the file cannot be read, or its values are not whole numbers from 0.
        GridMismatch: the label map is on another grid.
    """
    path = Path(path).expanduser()
    if find_format(path) == "dicom":
        raise VolumeError(
            f"'{path.name}' is DICOM; give the mask as .nii.gz, .nrrd or .mha on the image's grid."
        )
    array, affine, _ = _read_file(path, None, None)
    difference = grid.difference(Grid(array.shape, checked_affine(path.name, affine)))
    if difference:
        raise GridMismatch(
            f"The mask '{path.name}' does not lie on the grid of the image: {difference}; "
            "give a mask made on this image, or resample it to the image first."
        )
    if array.dtype.kind == "f":
        integral = np.isfinite(array).all() and bool((array == np.rint(array)).all())
        if not integral:
            raise VolumeError(
                f"The mask '{path.name}' has values that are not whole numbers; give a label map, not "
                "probabilities."
            )
    low, high = array.min(), array.max()
    if low < 0:
        raise VolumeError(
            f"The mask '{path.name}' has negative values (down to {low:g}); labels count from 0."
        )
    return array.astype(np.min_scalar_type(int(high)), copy=False)
