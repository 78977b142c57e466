"""Volumes of a folder are found, each with a name of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medsam_app.batch_folder import find_volumes
from medsam_app.errors import VolumeError
from tests.bad_kit import itk, nifti, voxels
from tests.dicom_files import write_series


def cases(folder: Path, **options: object) -> list[str]:
    return [each.case for each in find_volumes(folder, **options)]  # type: ignore[arg-type]


def test_files_of_all_formats_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "b/c").mkdir(parents=True)
    nifti(tmp_path / "one.nii.gz")
    nifti(tmp_path / "b/two.nii")
    itk(tmp_path / "b/c/three.nrrd", voxels())
    itk(tmp_path / "b/c/four.mha", voxels())
    for name in ("notes.txt", "one.prompts.json", ".hidden.nii.gz", "b/._two.nii"):
        (tmp_path / name).write_text("x")
    assert cases(tmp_path) == ["b/c/four", "b/c/three", "b/two", "one"]
    assert cases(tmp_path, leave_out=[tmp_path / "b/c"]) == ["b/two", "one"]


def test_names_that_differ_by_the_ending_alone(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    itk(tmp_path / "A.nrrd", voxels())
    nifti(tmp_path / "b.nii")
    assert cases(tmp_path) == ["A.nrrd", "a.nii.gz", "b"]


def test_each_series_of_dicom_is_a_volume(tmp_path: Path) -> None:
    array = np.arange(8 * 9 * 4, dtype=np.uint16).reshape(8, 9, 4)
    write_series(tmp_path / "p1/ct", array)
    write_series(tmp_path / "p2", array, series="1.2.1", SeriesDescription="T1 axial/fast")
    write_series(tmp_path / "p2", array, series="1.2.2", SeriesDescription="T2", first=10)
    write_series(tmp_path / "p2/below", array, series="1.2.3", SeriesDescription="T2")
    nifti(tmp_path / "p2/below/other.nii.gz")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "p1/ct")
    found = find_volumes(tmp_path)
    assert [each.case for each in found] == [
        "p1/ct", "p2/T1_axial_fast", "p2/T2_2", "p2/T2_3", "p2/below/other", "packed",
    ]  # fmt: skip
    assert [each.series for each in found] == [None, "1.2.1", "1.2.2", "1.2.3", None, None]
    assert not any(each.problem for each in found)


def test_slices_without_an_ending(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in/scan", np.ones((8, 9, 3), dtype=np.uint16))
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / ("IM000" + str(number) if number else "1.2.840.1"))
    assert cases(tmp_path / "in") == ["scan"]
    assert cases(folder) == ["scan"]  # the folder itself


def test_what_cannot_be_looked_into_is_a_case_that_fails(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.dcm").write_bytes(b"no DICOM")
    first, second = find_volumes(tmp_path)
    assert (first.case, second.case) == ("a", "bad")
    assert "not a .zip" in first.problem and "no DICOM images" in second.problem


def test_a_link_to_where_it_lies_ends(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert cases(tmp_path) == ["a"]


def test_nothing_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="holds no volume"):
        find_volumes(tmp_path)
    with pytest.raises(VolumeError, match="no folder"):
        find_volumes(tmp_path / "nowhere")
    with pytest.raises(VolumeError, match="is one file"):
        find_volumes(nifti(tmp_path / "a.nii.gz"))
