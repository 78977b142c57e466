"""Worklists of a server: opened once, and nobody waits for a folder that is not theirs."""

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

#: Seconds after which nobody is thought to come any more.
PATIENCE = 60


class Slow:
    """Looking through a folder ends when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.begun, self.go_on, self.times = Event(), Event(), 0
        refresh = Worklist.refresh

        def slowly(worklist: Worklist) -> int:
            if worklist.folder == folder:
                self.times += 1
                self.begun.set()
                assert self.go_on.wait(PATIENCE)
            return refresh(worklist)

        monkeypatch.setattr(Worklist, "refresh", slowly)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("large", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").write_bytes(b"not read yet")
    return tmp_path.resolve()


@pytest.fixture
def opened(root: Path) -> Iterator[Worklists]:
    made = Worklists([root])
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def test_nobody_waits_for_another_folder(
    root: Path, opened: Worklists, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch, root / "large")
    try:
        first = pool.submit(opened.get, 0, "large")
        assert slow.begun.wait(PATIENCE)
        assert pool.submit(opened.get, 0, "other").result(PATIENCE).folder == root / "other"
        second = pool.submit(opened.get, 0, "large/../large")
        assert not first.done() and not second.done()
    finally:
        slow.go_on.set()
    assert first.result(PATIENCE) is second.result(PATIENCE) is opened.get(0, "large")
    assert slow.times == 1  # whoever waited has what the first found


def test_an_open_one_is_answered_while_it_is_looked_through(
    root: Path, opened: Worklists, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened.get(0, "large")
    (root / "large/b.nii.gz").write_bytes(b"")
    slow = Slow(monkeypatch, root / "large")
    try:
        again = pool.submit(opened.get, 0, "large", refresh=True)
        assert slow.begun.wait(PATIENCE)
        assert pool.submit(opened.get, 0, "large").result(PATIENCE) is before
    finally:
        slow.go_on.set()
    assert again.result(PATIENCE) is before
    assert [case.name for case in before.cases()] == ["a", "b"]


def test_a_folder_that_could_not_be_opened_can_be_later(root: Path, opened: Worklists) -> None:
    (root / "bad").mkdir()
    (root / "bad" / os.fsdecode(b"bild_\xfc.nii.gz")).write_bytes(b"")
    for path in ("bad", "nowhere"):
        with pytest.raises(VolumeError):
            opened.get(0, path)
    assert not (root / "bad" / DATABASE).exists()
    (root / "bad/good.nii.gz").write_bytes(b"")
    worklist = opened.get(0, "bad")
    assert [case.name for case in worklist.cases()] == ["good"] and worklist.unread == 1
