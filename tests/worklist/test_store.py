"""Worklist of a folder: no work is lost with several writers, crashes and errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medsam_app.errors import SettingsError, VolumeError, WorklistConflict, WorklistError
from medsam_app.io import archive
from medsam_app.worklist import store as worklists
from medsam_app.worklist.rows import STATES
from medsam_app.worklist.store import DATABASE, MOST_VERSIONS, Worklist
from tests.support.bad_kit import voxels
from tests.support.closed_folder import close
from tests.support.dicom_files import write_series

NAMES = ["b.nii.gz", "a.nii.gz", "deep/er/c.nrrd", "deep/ein <b>Name</b> 'quoted\".mha"]
CASES = ["a", "b", "deep/ein <b>Name</b> 'quoted\"", "deep/er/c"]
ROOT = Path(__file__).parents[2]
#: Program that saves work in a loop and prints each saved version.
WRITER = """
import sys
from pathlib import Path
from medsam_app.worklist.store import Worklist
worklist = Worklist(Path(sys.argv[1]))
version = worklist.case("a").version
while True:
    version = worklist.save_work("a", f"prompts {version + 1} " + "x" * 100_000, seen=version)
    print(version, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read yet")
    return tmp_path / "data"


@pytest.fixture
def worklist(folder: Path) -> Worklist:
    new_worklist = Worklist(folder)
    assert new_worklist.refresh() == len(NAMES)
    return new_worklist


def test_cases_are_the_volumes_of_the_folder(worklist: Worklist, folder: Path) -> None:
    assert [case.name for case in worklist.cases()] == CASES
    assert {case.state for case in worklist.cases()} == {"new"}
    assert [case.name for case in worklist.cases(search="DEEP")] == CASES[2:]
    (folder / "b.nii.gz").unlink()
    (folder / "z.nii").write_bytes(b"")
    worklist.save_work("b", "work", seen=0)
    worklist.refresh()
    assert [case.name for case in worklist.cases()] == [*CASES, "z"]
    assert [case.name for case in worklist.cases() if case.missing] == ["b"]
    assert worklist.work("b") is not None


def test_label_files_next_to_images_are_not_cases(tmp_path: Path) -> None:
    """In every layout recognised by names; an only file of its name or one with work remains a case."""
    data = tmp_path / "data"
    images = ["a.nii.gz", "sub/imagesTr/b_0000.nii.gz", "sub/imagesTs/c_0000.nii.gz", "d_image.nrrd"]
    labels = ["a_seg.nii.gz", "a_mask.nii.gz", "sub/labelsTr/b.nii.gz", "d-label.nrrd", "e/listed.nii.gz"]
    volumes = ["e/volume.nii.gz", "f_seg.nii.gz", "sub/labelsTr/q.nii.gz"]
    for name in (*images, *labels, *volumes):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read yet")
    entry = {"image": "volume.nii.gz", "label": "listed.nii.gz"}
    (data / "e/dataset.json").write_text(json.dumps({"labels": {"1": "lump"}, "training": [entry]}))
    worklist = Worklist(data)
    assert worklist.refresh() == len(images) + len(volumes)
    assert {case.path for case in worklist.cases()} == {*images, *volumes}
    assert worklist.left_out == len(labels)

    # A label map that gets an image next to it is no case any more, unless there is work on it.
    worklist.save_work("f_seg", "work", seen=0)
    for name in ("f.nii.gz", "sub/imagesTr/q_0000.nii.gz"):
        (data / name).write_bytes(b"")
    worklist.refresh()
    assert {case.path for case in worklist.cases()} == {
        *images, "f.nii.gz", "f_seg.nii.gz", "sub/imagesTr/q_0000.nii.gz", "e/volume.nii.gz",
    }  # fmt: skip
    assert not any(case.missing for case in worklist.cases()) and worklist.left_out == len(labels) + 1

    # A folder with labels only, and masks of the worklist next to images.
    assert Worklist(data / "sub/labelsTr").refresh() == 2
    for name in ("images/x.nii.gz", "masks/images/x_mask.nii.gz", "masks/x.nii.gz"):
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    second = Worklist(tmp_path / "own")
    assert second.refresh() == 1 and second.left_out == 0


def test_unreadable_folders_are_left_out(
    worklist: Worklist, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other folders are scanned, and cases in the unreadable ones are not marked as missing."""
    for name in ("s/images/x.nii.gz", "s/labels/x.nii.gz", "s/y.nii.gz", "s/y_seg.nii.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not read yet")
    (folder / "ring").symlink_to(folder / "ring")
    (folder / "ring.nii.gz").symlink_to(folder / "ring.nii.gz")
    assert worklist.refresh() == len(NAMES) + 2 and (worklist.left_out, worklist.unread) == (2, 0)
    (folder / "deep/er/c.nrrd").unlink()
    (folder / "b.nii.gz").unlink()
    (folder / "b.nii.gz").symlink_to(folder / "b.nii.gz")
    with monkeypatch.context() as patch:
        close(patch, folder / "deep/er", folder / "s/images")
        worklist.refresh()
    assert (worklist.left_out, worklist.unread) == (1, 2)
    # The label maps cannot be recognised while their folder of images is unreadable.
    assert {case.path for case in worklist.cases()} == {
        *NAMES,
        "s/images/x.nii.gz",
        "s/labels/x.nii.gz",
        "s/y.nii.gz",
    }
    assert [case.name for case in worklist.cases() if case.missing] == ["b"]
    worklist.refresh()
    assert [case.name for case in worklist.cases() if case.missing] == ["b", "deep/er/c"]
    assert (worklist.left_out, worklist.unread) == (2, 0)


def test_names_that_are_not_utf_8_are_left_out(worklist: Worklist, folder: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"bild_\xfc")
    for name in (f"{odd}.nii.gz", f"{odd}/whole.nii.gz", "slices/1.dcm", f"slices/{odd}.dcm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0" * 128 + b"DICM")
    assert worklist.refresh() == len(NAMES) + 1 and worklist.unread == 2
    assert [case.name for case in worklist.cases()] == [*CASES, "slices"]
    assert "cannot be read" in worklist.case("slices").problem
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / f"{odd}.nii.gz").write_bytes(b"")
    with pytest.raises(VolumeError, match="1 cannot be looked at, or have names that are not UTF-8"):
        Worklist(alone).refresh()


def test_an_archive_without_space_to_unpack_is_not_called_damaged(
    worklist: Worklist, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no cases until it is unpacked once, and later none of them is marked as missing."""
    for number in (1, 2):
        array = voxels((8, 9, 4), "uint16")
        write_series(tmp_path / "p", array, series=f"1.2.{number}", first=10 * number, SeriesDescription="T")
    shutil.make_archive(str(folder / "packed"), "zip", tmp_path / "p")

    def full(path: Path, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    def archive_cases() -> list[tuple[str, str, bool]]:
        cases = [case for case in worklist.cases() if case.path == "packed.zip"]
        return [(case.name, case.problem, case.missing) for case in cases]

    with monkeypatch.context() as patch:
        patch.setattr(archive, "_extract", full)
        assert worklist.refresh() == len(NAMES) and worklist.unread == 1
        assert archive_cases() == []
    expected = [("packed/T_1", "", False), ("packed/T_2", "", False)]
    assert worklist.refresh() == len(NAMES) + 2 and archive_cases() == expected
    monkeypatch.setattr(archive, "_extract", full)
    assert worklist.refresh() == len(NAMES) and archive_cases() == expected


def test_other_processes_can_write_during_a_scan(
    worklist: Worklist, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All paths are resolved before the database is locked."""
    monkeypatch.setattr(worklists, "PATIENCE", 0.0)
    second, real, written = Worklist(folder), Path.resolve, []

    def resolve(path: Path, strict: bool = False) -> Path:
        second.record_event("a", "seen")  # "could not be written" where the list is locked
        written.append(path)
        return real(path, strict)

    monkeypatch.setattr(Path, "resolve", resolve)
    assert worklist.refresh() == len(NAMES) and len(written) > len(NAMES)


def test_states_record_user_and_time(worklist: Worklist) -> None:
    worklist.save_work("a", "{}", seen=0, who="ada")
    worklist.set_state("a", "accepted", who="bob")
    case = worklist.case("a")
    assert (case.state, case.who, case.version) == ("accepted", "bob", 1)
    assert [(event.what, event.who) for event in worklist.events("a")] == [
        ("accepted", "bob"),
        ("in progress", "ada"),
    ]
    assert worklist.counts() == {"new": 3, "in progress": 0, "to review": 0, "accepted": 1, "skipped": 0}
    assert [case.name for case in worklist.cases(state="accepted")] == ["a"]
    with pytest.raises(SettingsError, match="in progress, to review"):
        worklist.set_state("a", "done")  # type: ignore[arg-type]
    with pytest.raises(WorklistError, match="no case 'q'"):
        worklist.set_state("q", "skipped")


def test_the_later_of_two_writers_gets_a_conflict(folder: Path, worklist: Worklist) -> None:
    second = Worklist(folder)
    assert worklist.save_work("a", "one", seen=0, who="ada") == 1
    with pytest.raises(WorklistConflict, match="'a' was changed by ada") as caught:
        second.save_work("a", "two", seen=0, who="bob")
    assert caught.value.version == 1
    work = second.work("a")
    assert work is not None and work.prompts == "one"
    assert second.save_work("a", "two", seen=caught.value.version, who="bob") == 2
    assert [work.prompts for work in worklist.works("a")] == ["two", "one"]


def test_many_writers_at_once_lose_nothing(folder: Path, worklist: Worklist) -> None:
    lists = [worklist, Worklist(folder)]

    def write(number: int) -> None:
        name = CASES[number % 4]
        while True:
            try:
                current = lists[number % 2]
                return void(current.save_work(name, str(number), seen=current.case(name).version))
            except WorklistConflict:
                continue

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    written = [work.prompts for name in CASES for work in worklist.works(name)]
    assert sorted(map(int, written)) == list(range(80))


def void(_: object) -> None:
    return None


@pytest.mark.slow
def test_a_killed_writer_loses_at_most_the_last_version(folder: Path, worklist: Worklist) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        printed = [int(writer.stdout.readline()) for _ in range(3)]
        time.sleep(0.02)
        os.kill(writer.pid, signal.SIGKILL)
        printed += [int(line) for line in writer.communicate()[0].splitlines() if line.strip().isdigit()]
        reopened = Worklist(folder)
        work = reopened.work("a")
        assert work is not None and printed[-1] <= work.version <= printed[-1] + 1
        assert (
            work.prompts.startswith(f"prompts {work.version} ") and reopened.case("a").version == work.version
        )
        reopened.close()


def test_old_versions_are_deleted(worklist: Worklist) -> None:
    for version in range(MOST_VERSIONS + 5):
        worklist.save_work("a", str(version), seen=version)
    assert len(worklist.works("a")) == MOST_VERSIONS


def test_the_folder_can_be_moved_with_the_database_elsewhere(folder: Path, tmp_path: Path) -> None:
    database_folder = tmp_path / "kept"
    database_folder.mkdir()
    first = Worklist(folder, place=database_folder)
    first.refresh()
    first.save_work("deep/er/c", "work", seen=0)
    first.close()
    assert not (folder / DATABASE).exists()
    moved = folder.rename(tmp_path / "moved")
    reopened = Worklist(moved, place=database_folder)
    assert reopened.refresh() == len(NAMES)
    work = reopened.work("deep/er/c")
    assert work is not None and work.prompts == "work"
    assert not any(case.missing for case in reopened.cases())


def test_a_database_that_cannot_be_opened_is_an_error_with_a_message(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(WorklistError, match="cannot be opened"):
        Worklist(tmp_path / "nowhere")
    (folder / DATABASE).write_bytes(b"this is no database, though somebody called it one" * 100)
    with pytest.raises(WorklistError, match=r"cannot be opened|could not be written"):
        Worklist(folder)
    (folder / DATABASE).unlink()
    newer = sqlite3.connect(folder / DATABASE)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(WorklistError, match="version 99"):
        Worklist(folder)
    shutil.rmtree(folder)
    assert len(STATES) == 5
