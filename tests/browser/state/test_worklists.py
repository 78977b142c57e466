"""Worklists of a server: opened once, without blocking requests for other folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from medsam_app.browser.state.worklists import Worklists
from medsam_app.errors import VolumeError
from medsam_app.worklist.store import DATABASE, Worklist

#: Timeout of waits in seconds.
TIMEOUT = 60


class SlowScan:
    """Patch that makes the scan of a folder wait for the event `proceed`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.begun, self.proceed, self.count = Event(), Event(), 0
        refresh = Worklist.refresh

        def slow_refresh(worklist: Worklist) -> int:
            if worklist.folder == folder:
                self.count += 1
                self.begun.set()
                assert self.proceed.wait(TIMEOUT)
            return refresh(worklist)

        monkeypatch.setattr(Worklist, "refresh", slow_refresh)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("large", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").write_bytes(b"not read yet")
    return tmp_path.resolve()


@pytest.fixture
def worklists(root: Path) -> Iterator[Worklists]:
    worklists = Worklists([root])
    yield worklists
    worklists.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_other_folders_are_not_blocked(
    root: Path, worklists: Worklists, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowScan(monkeypatch, root / "large")
    try:
        first = pool.submit(worklists.get, 0, "large")
        assert slow.begun.wait(TIMEOUT)
        assert pool.submit(worklists.get, 0, "other").result(TIMEOUT).folder == root / "other"
        second = pool.submit(worklists.get, 0, "large/../large")
        assert not first.done() and not second.done()
    finally:
        slow.proceed.set()
    assert first.result(TIMEOUT) is second.result(TIMEOUT) is worklists.get(0, "large")
    assert slow.count == 1  # the second request got the result of the first scan


def test_an_open_worklist_is_answered_during_a_scan(
    root: Path, worklists: Worklists, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    worklist = worklists.get(0, "large")
    (root / "large/b.nii.gz").write_bytes(b"")
    slow = SlowScan(monkeypatch, root / "large")
    try:
        again = pool.submit(worklists.get, 0, "large", refresh=True)
        assert slow.begun.wait(TIMEOUT)
        assert pool.submit(worklists.get, 0, "large").result(TIMEOUT) is worklist
    finally:
        slow.proceed.set()
    assert again.result(TIMEOUT) is worklist
    assert [case.name for case in worklist.cases()] == ["a", "b"]


def test_a_folder_that_could_not_be_opened_can_be_later(root: Path, worklists: Worklists) -> None:
    (root / "bad").mkdir()
    (root / "bad" / os.fsdecode(b"bild_\xfc.nii.gz")).write_bytes(b"")
    for path in ("bad", "nowhere"):
        with pytest.raises(VolumeError):
            worklists.get(0, path)
    assert not (root / "bad" / DATABASE).exists()
    (root / "bad/good.nii.gz").write_bytes(b"")
    worklist = worklists.get(0, "bad")
    assert [case.name for case in worklist.cases()] == ["good"] and worklist.unread == 1
