"""Search for the volumes of a folder, with unique names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from medsam_app.errors import VolumeError
from medsam_app.io import archive
from medsam_app.io.volume_folder import find_volumes
from tests.support.bad_kit import itk, nifti, voxels
from tests.support.closed_folder import close
from tests.support.dicom_files import write_series


def cases(folder: Path, **options: object) -> list[str]:
    return [volume.case for volume in find_volumes(folder, **options)]  # type: ignore[arg-type]


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
    assert [volume.case for volume in found] == [
        "p1/ct", "p2/T1_axial_fast", "p2/T2_2", "p2/T2_3", "p2/below/other", "packed",
    ]  # fmt: skip
    assert [volume.series for volume in found] == [None, "1.2.1", "1.2.2", "1.2.3", None, None]
    assert not any(volume.problem for volume in found)


def test_slices_without_an_ending(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "in/scan", np.ones((8, 9, 3), dtype=np.uint16))
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / ("IM000" + str(number) if number else "1.2.840.1"))
    assert cases(tmp_path / "in") == ["scan"]
    assert cases(folder) == ["scan"]


def test_an_unreadable_archive_is_a_volume_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.dcm").write_bytes(b"no DICOM")
    first, second = find_volumes(tmp_path)
    assert (first.case, second.case) == ("a", "bad")
    assert "not a .zip" in first.problem and "no DICOM images" in second.problem


def test_a_link_to_its_own_folder_ends(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert cases(tmp_path) == ["a"]


def test_unreadable_folders_do_not_stop_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.nii.gz", "closed/b.nii.gz", "closed/in/c.nii.gz", "deep/d.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nifti(tmp_path / name)
    for name, target in (("ring.nii.gz", "ring.nii.gz"), ("ring", "ring"), ("gone.nii.gz", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
    assert cases(tmp_path) == ["a", "closed/b", "closed/in/c", "deep/d"]
    close(monkeypatch, tmp_path / "closed")
    found = {volume.case: volume for volume in find_volumes(tmp_path)}
    assert list(found) == ["a", "closed", "deep/d"]
    assert found["closed"].problem == (
        "'closed' cannot be looked at (Permission denied); change its permissions, or move it away."
    )
    assert found["closed"].unread and not found["a"].unread
    with pytest.raises(VolumeError, match=r"'closed' cannot be looked at \(Permission denied\)"):
        find_volumes(tmp_path / "closed")
    # Targets of links that may not be followed, and files in a folder whose names only can be read.
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if path.name == "d.nii.gz":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert [volume.case for volume in find_volumes(tmp_path) if volume.unread] == ["closed", "deep/d"]


def test_an_archive_without_space_to_unpack_is_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nifti(tmp_path / "a.nii.gz")
    (tmp_path / "b.zip").write_bytes(b"not looked at")

    def full(path: Path, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "_extract", full)
    first, second = find_volumes(tmp_path)
    assert (first.unread, second.unread, second.case) == (False, True, "b")
    assert "could not be unpacked on this machine (No space left on device)" in second.problem


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    nifti(tmp_path / os.fsdecode(b"bild_\xfc.nii.gz"))
    assert cases(tmp_path) == [os.fsdecode(b"bild_\xfc")]


def test_a_folder_without_volumes_gives_a_message(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="holds no volume"):
        find_volumes(tmp_path)
    with pytest.raises(VolumeError, match="no folder"):
        find_volumes(tmp_path / "nowhere")
    with pytest.raises(VolumeError, match="is one file"):
        find_volumes(nifti(tmp_path / "a.nii.gz"))
