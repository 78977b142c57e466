"""MONAI reader of every supported format, for `monai.transforms.LoadImage`.

Importing MONAI takes seconds, so that only code that runs MONAI's transforms imports this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from medsam_app.errors import MedsamError
from medsam_app.io.headers import find_format
from medsam_app.io.loading import load_volume
from medsam_app.io.volume import Volume


class VolumeReader(ImageReader):
    """Reader of .nii, .nii.gz, .nrrd, .mha, .mhd, and folders or .zip files of DICOM slices.

    Arrays and affines are those of `load_volume`: checked, (i, j, k) in the file's own order, RAS, one frame
    and channel. MONAI's own readers read all frames, and rewrite an affine whose voxel sizes disagree, which
    would move saved masks.

    Args:
        series: UID or number (from 1) of a DICOM series.
        frame: number from 0 of a time point or echo.
        channel: number from 0 of a value of multi-channel voxels.
    """

    def __init__(
        self, *, series: str | None = None, frame: int | None = None, channel: int | None = None
    ) -> None:
        self.series, self.frame, self.channel = series, frame, channel

    def verify_suffix(self, filename: Any) -> bool:
        """Return whether this reader recognises a path."""
        try:
            find_format(_path(filename))
        except MedsamError:
            return False
        return True

    def read(self, data: Any, **kwargs: Any) -> Volume:
        """Read a path; see MONAI's `ImageReader.read`.

        Raises:
            SeriesChoice: there are several series, frames or channels and none is chosen.
            VolumeError: the path cannot be used as a volume.
        """
        return load_volume(_path(data), series=self.series, frame=self.frame, channel=self.channel)

    def get_data(self, img: Volume) -> tuple[NDArray, dict]:
        """Return the (i, j, k) array and MONAI's metadata of a volume; see `ImageReader.get_data`."""
        affine = np.array(img.affine)
        return img.array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.array.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            MetaKeys.SPACE: SpaceKeys.RAS,
        }


def _path(data: Any) -> Path:
    """Return the single path that MONAI passes to a reader."""
    return Path(data[0] if isinstance(data, (tuple, list)) else data)
