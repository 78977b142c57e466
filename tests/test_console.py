"""Printed lines, and checks of files that a command may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medsam_app.console import check_target, note, say, step
from medsam_app.errors import SaveError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    file = tmp_path / "images" / "scan.nii"
    file.write_bytes(b"voxels")
    return file


@pytest.mark.parametrize("overwrite", [False, True])
def test_sources_are_protected_under_every_name(source: Path, tmp_path: Path, overwrite: bool) -> None:
    os.link(source, tmp_path / "hard.nii")
    (tmp_path / "soft.nii").symlink_to(source)
    for target in (source, tmp_path / "hard.nii", tmp_path / "soft.nii"):
        with pytest.raises(SaveError, match="is what is read here and is not overwritten"):
            check_target(target, sources=[source], overwrite=overwrite)
    with pytest.raises(SaveError, match="is what is read here"):
        check_target(source, sources=[source.parent], overwrite=overwrite)


def test_other_files_are_replaced_only_on_request(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "mask.nii"
    check_target(target, sources=[source, tmp_path / "missing.nii"], overwrite=False)
    check_target(source.with_name("mask.nii"), sources=[source.parent], overwrite=False)  # new in the folder
    target.touch()
    with pytest.raises(SaveError, match="exists already"):
        check_target(target, sources=[source], overwrite=False)
    check_target(target, sources=[source, tmp_path / "missing.nii"], overwrite=True)


def test_folders(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="is a folder; give the name of a file"):
        check_target(tmp_path / "images", sources=[source], overwrite=True)
    with pytest.raises(SaveError, match="There is no folder"):
        check_target(tmp_path / "nowhere" / "mask.nii", sources=[source], overwrite=True)


def test_lines_are_printed_verbatim(capfd: pytest.CaptureFixture[str]) -> None:
    text = "scan.py:100: [bold]liver[/bold] :warning: " + "long " * 40 + "end"
    say(text)
    note(text)
    assert capfd.readouterr() == (f"{text}\n", f"{text}\n")


def test_a_step_is_shown_by_one_process(capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with step("Reading", quiet=quiet) as progress:
            progress("half of it", 0.5)
    assert capfd.readouterr() == ("", "Reading ...\n")
