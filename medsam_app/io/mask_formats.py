"""Writer for masks of any format, chosen by the ending of the file name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

from medsam_app.errors import SettingsError, unknown_name
from medsam_app.io.formats import MASK_SUFFIXES, SEGMENTATION
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask


def ending_of(format: str) -> str:
    """Return the file ending of a format; raise `SettingsError` for an unknown one."""
    if format not in MASK_SUFFIXES:
        raise SettingsError(unknown_name("format of masks", format, MASK_SUFFIXES))
    return MASK_SUFFIXES[format]


def save_labels(
    labels: NDArray,
    volume: Volume,
    path: Path,
    *,
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
) -> Path:
    """Write a label map in the format given by the file name, and verify it by reading it back.

    Args:
        labels: (i, j, k) whole numbers from 0, or booleans, on the grid of `volume`.
        volume: image of the label map.
        path: ends in .seg.dcm for a DICOM segmentation, else in an ending of `save_mask`.
        names: names of label values.
        colours: colours of label values as '#rrggbb'; only DICOM segmentations store them.

    Raises:
        SaveError: see `save_mask` and `save_dicom_seg`.
        VolumeError: see `save_dicom_seg`.
    """
    if path.name.endswith(SEGMENTATION):
        from medsam_app.io.dicom.seg_writer import save_dicom_seg  # imports highdicom

        return save_dicom_seg(labels, volume, path, label_names=names, colours=colours)
    return save_mask(labels, volume, path, label_names=names)


def plain_name(name: str) -> str:
    """Return a name with characters that are safe in file names, at most 60 of them."""
    return re.sub(r"[^\w+-]+", "_", name).strip("_")[:60] or "object"
