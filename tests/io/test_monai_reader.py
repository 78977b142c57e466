"""MONAI reader: arrays and affines equal those of `load_volume`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsam_app import VolumeError, load_volume
from medsam_app.errors import SeriesChoice
from tests.io.test_readers import nifti, oblique, voxels, write_series

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),  # warnings of readers that are not used here
]


def _paths(folder: Path) -> list[Path]:
    """Write an oblique volume in each format and return their paths."""
    for name in ("scan.nrrd", "scan.mha"):
        sitk.WriteImage(oblique(voxels((5, 7, 6))), str(folder / name))
    series = folder / "series"
    series.mkdir()
    write_series(series, voxels((8, 9, 4), "uint16"))
    return [nifti(folder / "scan.nii.gz"), folder / "scan.nrrd", folder / "scan.mha", series]


def test_load_image_gives_what_load_volume_gives(tmp_path: Path) -> None:
    from monai.transforms import LoadImage

    from medsam_app.io.monai_reader import VolumeReader

    for path in _paths(tmp_path):
        tensor = LoadImage(reader=VolumeReader(), dtype=None)(path)
        volume = load_volume(path)
        assert np.array_equal(np.asarray(tensor), volume.array)
        assert np.allclose(tensor.affine, volume.affine, atol=0)


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sitk.WriteImage(oblique(voxels((5, 7, 6))), "scan.nrrd")
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LoadImage" in code]
    names: dict = {}
    exec(code, names)
    assert np.array_equal(np.asarray(names["image"]), load_volume("scan.nrrd").array)


def test_choices_and_errors_are_those_of_load_volume(tmp_path: Path) -> None:
    from medsam_app.io.monai_reader import VolumeReader

    write_series(tmp_path, voxels((8, 9, 4), "uint16"), series="1.2.3.4")
    write_series(tmp_path, voxels((8, 9, 4), "uint16") + 1, series="1.2.3.5", first=9)
    with pytest.raises(SeriesChoice):
        VolumeReader().read(tmp_path)
    assert (
        VolumeReader(series="2").read(tmp_path).fingerprint == load_volume(tmp_path, series="2").fingerprint
    )
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    assert not VolumeReader().verify_suffix(str(text))
    with pytest.raises(VolumeError):
        VolumeReader().read(text)
