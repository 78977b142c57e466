"""Replacing files: complete at any time, with the mode of new files, and without leftovers."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import threading
from pathlib import Path
from typing import Literal, get_args

import pytest

from medsam_app.atomic import DRAFTS, remove_drafts, replace_file, save_whole, write_whole
from tests.support.file_writers import WRITERS
from tests.support.forked_cli import exit_status

Moment = Literal["while writing", "before the rename"]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by path, without incomplete ones."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    complete = [file for file in files if not file.parent.name.startswith((".saving-", ".case-"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in complete}


def rewrite(writer: str, folder: Path, size: int, moment: Moment | None) -> None:
    """Let a writer write its file, and kill it in the middle."""
    write = WRITERS[writer](folder)
    if moment == "while writing":
        # The system kills a process that writes past this limit, without running any handler.
        largest = max(len(file) for file in contents(folder).values())
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 10, largest - 10))
    elif moment == "before the rename":
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
    write(size)


@pytest.mark.forked
@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("moment", get_args(Moment))
def test_a_killed_writer_preserves_the_earlier_file(tmp_path: Path, writer: str, moment: Moment) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert exit_status(rewrite, writer, folder, 1, None) == 0
    before = contents(folder)
    assert before
    by = signal.SIGXFSZ if moment == "while writing" else signal.SIGKILL
    assert exit_status(rewrite, writer, folder, 2, moment) == -by
    assert contents(folder) == before
    assert [path for path in folder.rglob(DRAFTS) if any(path.iterdir())]  # it had started to write
    assert exit_status(rewrite, writer, folder, 2, None) == 0
    after = contents(folder)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in before)


def rewrite_with_umask(writer: str, folder: Path, umask: int) -> None:
    """Write without changing the umask even briefly, because other threads would be affected."""
    write = WRITERS[writer](folder)
    os.umask(umask)
    os.umask = _refuse
    write(1)


def _refuse(umask: int) -> int:
    raise AssertionError("the umask belongs to all threads of a process")


@pytest.mark.forked
@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_makes_files_with_the_mode_of_new_files(tmp_path: Path, writer: str) -> None:
    for umask in (0o002, 0o077):
        folder = tmp_path / f"{umask:o}"
        folder.mkdir()
        assert exit_status(rewrite_with_umask, writer, folder, umask) == 0
        modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in contents(folder)}
        assert modes == {0o666 & ~umask}


def test_drafts_of_killed_processes_are_removed_by_age(tmp_path: Path) -> None:
    for name in ("a", "a-b", "b"):
        draft = tmp_path / f".saving-{name}-12345678" / name
        draft.parent.mkdir()
        draft.touch()
    remove_drafts(tmp_path / "a", older_than=60)
    assert len(list(tmp_path.iterdir())) == 3
    remove_drafts(tmp_path / "a", older_than=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".saving-a-b-12345678", ".saving-b-12345678"]
    remove_drafts(tmp_path / "nowhere" / "a", older_than=0)


def test_an_error_preserves_the_earlier_file_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="not right"), replace_file(path) as draft:
        draft.write_text("new")
        raise ValueError("not right")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

    def prove(draft: Path) -> None:
        assert json.loads(draft.read_text()) == {"a": 1}

    with pytest.raises(AssertionError):
        write_whole(path, '{"a": 2}', prove=prove)
    write_whole(path, '{"a": 1}', prove=prove)
    assert path.read_text() == '{"a": 1}'


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_a_new_file_and_the_umask_stays(tmp_path: Path, umask: int) -> None:
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        # Files that another thread creates in the meantime have the umask's mode as well.
        number = 0
        while not done.is_set():
            other = tmp_path / f"other-{number}"
            other.touch()
            seen.add(stat.S_IMODE(other.stat().st_mode))
            number += 1

    before = os.umask(umask)
    try:
        thread = threading.Thread(target=watch)
        thread.start()
        for number in range(50):
            save_whole(tmp_path / f"{number}.txt", "x")
            assert stat.S_IMODE((tmp_path / f"{number}.txt").stat().st_mode) == 0o666 & ~umask
    finally:
        done.set()
        thread.join()
        os.umask(before)
    assert seen == {0o666 & ~umask}


def test_several_files_of_one_draft_appear_together(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a.mhd") as draft:
        draft.write_text("header")
        draft.with_suffix(".raw").write_bytes(b"voxels")
        assert not (tmp_path / "a.raw").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mhd", "a.raw"]
