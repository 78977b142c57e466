"""Writer of label maps on the grid of their image, verified by reading back.

The file is written in a hidden folder next to its target, read back, compared voxel by voxel and corner by
corner, and only then renamed: a crash or a full disk never leaves an incomplete mask.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray

from medsam_app.atomic import as_text, is_text, replace_file
from medsam_app.errors import SaveError
from medsam_app.grid.geometry import Grid, flip_affine
from medsam_app.io.formats import WRITABLE, file_type
from medsam_app.io.headers import itk_affine
from medsam_app.io.text_headers import check_text_header
from medsam_app.io.volume import Volume


def save_mask(
    label_map: NDArray, volume: Volume, path: str | Path, *, label_names: Mapping[int, str] | None = None
) -> Path:
    """Write a label map on the grid of its image and verify it by reading it back.

    Args:
        label_map: (i, j, k) whole numbers from 0, or booleans, on the grid of `volume`.
        volume: image; the file gets its affine, qform and sform codes and units.
        path: ends in .nii.gz, .nii, .nrrd, .mha or .mhd (which writes a data file next to it).
        label_names: names of label values, stored in the file's header as JSON.

    Returns:
        The written path.

    Raises:
        SaveError: wrong labels or shape, unknown format, the path is the image itself, or the file could not
            be written or did not read back as written. An existing file at `path` is then unchanged.
    """
    path = Path(path).expanduser()
    kind = file_type(path.name)
    if kind is None or not kind.writable:
        raise SaveError(
            f"A mask cannot be saved as '{path.name}'; let its name end in {', '.join(WRITABLE)}."
        )
    if kind.format != "nifti" and not is_text(str(path)):  # would crash SimpleITK
        raise SaveError(
            f"'{as_text(path.name)}' cannot be written as {kind.suffix}: its name, or that of a folder "
            "above, is not UTF-8; rename it, or save as .nii.gz."
        )
    labels = smallest_labels(label_map, volume.shape)
    names = (
        json.dumps({"labels": {str(k): v for k, v in (label_names or {}).items()}}) if label_names else None
    )

    def write(draft: Path) -> None:
        if kind.format == "nifti":
            _write_nifti(labels, volume, draft, names)
            written, affine = _read_nifti(draft, volume)
        else:
            _write_itk(labels, volume.affine, draft, names)
            written, affine = _read_itk(draft)
        prove(path, labels, volume.grid, written, affine)

    write_proved(path, volume, write)
    return path


def save_probability(chance: NDArray[np.uint8], volume: Volume, path: str | Path) -> Path:
    """Write probabilities on the grid of their image and verify them by reading them back.

    Args:
        chance: (i, j, k) probabilities as 0 to 255; the file's scaling maps them to 0 to 1.
        volume: image of the probabilities.
        path: ends in .nii or .nii.gz.

    Raises:
        SaveError: see `save_mask`.
    """
    path = Path(path).expanduser()

    def write(draft: Path) -> None:
        # Rounded down, so that no probability exceeds 1.
        _write_nifti(chance, volume, draft, None, slope=float(np.nextafter(np.float32(1 / 255), 0)))
        written, affine = _read_nifti(draft, volume)
        prove(path, chance, volume.grid, np.rint(written * 255).astype(np.uint8), affine)

    write_proved(path, volume, write)
    return path


def write_proved(path: Path, volume: Volume, write: Callable[[Path], None]) -> None:
    """Write a file in a hidden folder next to its target, verify it, then move it there.

    Args:
        path: the target.
        volume: image; its files must not be overwritten.
        write: function that writes the file to a path and verifies it.

    Raises:
        SaveError: the file could not be written, or `write` raised the error.
    """
    _keep_image(path, volume.source)
    check_place(path)
    try:
        with replace_file(path) as draft:
            write(draft)
            for file in draft.parent.iterdir():  # including the data file of an .mhd
                _keep_image(path.parent / file.name, volume.source)
    except OSError as error:
        raise _not_written(path, error) from error
    except RuntimeError as error:  # SimpleITK
        raise SaveError(
            f"'{path.name}' could not be written; look for free space and permissions."
        ) from error


def check_place(path: Path) -> None:
    """Check that the path is not a folder and that its parent folder exists."""
    if path.is_dir():
        raise SaveError(f"'{path.name}' is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise SaveError(f"The folder '{path.parent}' does not exist; make it first or save elsewhere.")


def smallest_labels(label_map: NDArray, shape: tuple[int, int, int]) -> NDArray:
    """Return the label map in the smallest unsigned type that holds its labels.

    Raises:
        SaveError: wrong shape, or negative, fractional or too large labels.
    """
    if tuple(label_map.shape) != tuple(shape):
        raise SaveError(f"The mask has shape {tuple(label_map.shape)}, but its image has {tuple(shape)}.")
    if label_map.dtype.kind not in "biuf":
        raise SaveError(f"A mask of type {label_map.dtype} cannot be saved; labels are whole numbers from 0.")
    if label_map.dtype.kind == "f" and not (
        np.isfinite(label_map).all() and bool((label_map == np.rint(label_map)).all())
    ):
        raise SaveError("The mask has values that are not whole numbers; threshold it before it is saved.")
    low, high = label_map.min(), label_map.max()
    if low < 0:
        raise SaveError(f"The mask has negative labels (down to {int(low)}); labels count from 0.")
    if high > 2**32 - 1:
        raise SaveError(
            f"The mask has labels up to {int(high)}; the largest that can be saved is {2**32 - 1}."
        )
    return label_map.astype(np.min_scalar_type(int(high)), copy=False)


def _not_written(path: Path, error: OSError) -> SaveError:
    reason = error.strerror or "unknown reason"
    return SaveError(
        f"'{path.name}' could not be written to '{path.parent}' ({reason}); free some space, change the "
        "permissions "
        "or save elsewhere."
    )


def _keep_image(target: Path, source: Path | None) -> None:
    """Check that the target is neither the image nor its data file."""
    if source is None or not source.is_file() or not target.exists():
        return
    files = [source]
    if source.suffix.lower() in (".mhd", ".nrrd"):
        data_file = check_text_header(
            source, "nrrd" if source.suffix.lower() == ".nrrd" else "meta"
        ).data_file
        files += [data_file] if data_file else []
    if any(target.samefile(file) for file in files):
        raise SaveError(
            f"Saving to '{target.name}' would overwrite the image itself; give the mask another name."
        )


def _write_nifti(
    labels: NDArray, volume: Volume, path: Path, names: str | None, *, slope: float | None = None
) -> None:
    image_class = nib.Nifti1Image if max(labels.shape) < 2**15 else nib.Nifti2Image
    header = image_class.header_class()
    header.set_data_shape(labels.shape)
    header.set_data_dtype(labels.dtype)
    if volume.nifti_geometry is not None:
        for name, value in volume.nifti_geometry.items():
            if name == "pixdim":
                header["pixdim"][:4] = value
            else:
                header[name] = value
    else:
        header.set_xyzt_units("mm")
        header.set_sform(volume.affine, code=volume.nifti_codes[1] or 1)
        # A quaternion cannot represent shear (gantry tilt); the sform alone is used then.
        header.set_qform(volume.affine, code=volume.nifti_codes[0] if not _sheared(volume.affine) else 0)
    if names is not None:
        header.extensions.append(Nifti1Extension("comment", names.encode()))
    image = image_class(labels, None, header)
    image.header.set_slope_inter(slope, None if slope is None else 0)
    if path.name.lower().endswith(".gz"):
        # No name or time in the gzip header: equal masks give equal bytes.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            image.to_file_map(image_class.make_file_map({"image": file}))
    else:
        image.to_filename(path)


def _sheared(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)


def _read_nifti(path: Path, volume: Volume) -> tuple[NDArray, NDArray[np.float64]]:
    image: Any = nib.load(path)
    if volume.nifti_geometry is not None:
        codes = (int(image.header["qform_code"]), int(image.header["sform_code"]))
        if codes != volume.nifti_codes:
            raise SaveError(
                f"'{path.name}' did not keep the image's qform and sform codes; nothing was saved."
            )
    return np.asanyarray(image.dataobj), image.affine


def _write_itk(labels: NDArray, affine: NDArray[np.float64], path: Path, names: str | None) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels.transpose(2, 1, 0)))
    lps = flip_affine(affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    if names is not None:
        image.SetMetaData("labels", names)
    sitk.WriteImage(image, str(path), useCompression=True)


def _read_itk(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), flip_affine(itk_affine(image))


def prove(path: Path, labels: NDArray, grid: Grid, written: NDArray, affine: NDArray[np.float64]) -> None:
    """Compare the file read back with the mask; raise `SaveError` if they differ."""
    difference = grid.difference(Grid(written.shape, affine))
    if difference:
        raise SaveError(
            f"'{path.name}' did not read back on the grid of the image ({difference}); nothing was saved."
        )
    # Slice by slice: comparing all at once would need an array as large as the volume.
    if written.dtype != labels.dtype or any(
        (written[..., k] != labels[..., k]).any() for k in range(labels.shape[2])
    ):
        raise SaveError(f"'{path.name}' did not read back as written; nothing was saved. Look at the disk.")
