"""Several people on one model: turns, memory, and what they are told."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from medsam_app.browser.protocol.request_bodies import Source
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.worker import ModelWorker
from medsam_app.browser.state.workspace_registry import WorkspaceRegistry
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import SettingsError, VolumeError
from medsam_app.io.volume import Volume
from medsam_app.prompts.types import Point
from medsam_app.session.session import Session

MB = 10**6


def test_ten_waiting_clicks_delay_a_single_one_by_one() -> None:
    worker, order, begin = ModelWorker(), [], threading.Event()
    worker.submit(begin.wait)
    for who, count in (("ann", 10), ("bob", 3), ("eve", 1)):
        for n in range(count):
            worker.submit(lambda who=who, n=n: order.append(who + str(n)), who)
    late = worker.submit(lambda: list(order), "last")
    assert worker.waiting == 16
    begin.set()
    assert late.result(10) == ["ann0", "bob0", "eve0"]  # after all, and still before ann's second click
    worker.run(lambda: None, "ann")  # own jobs stay in their order
    assert order[3:7] == ["ann1", "bob1", "ann2", "bob2"] and order[7:] == [f"ann{n}" for n in range(3, 10)]
    worker.close()


def test_errors_go_to_whoever_asked_and_what_waits_is_bounded() -> None:
    worker, begin = ModelWorker(most_waiting=2), threading.Event()
    running = worker.submit(begin.wait)
    first = worker.submit(lambda: 1 / 0, "ann")
    dropped = worker.submit(lambda: 2, "ann")
    with pytest.raises(SettingsError, match="2 requests of this session wait"):
        worker.submit(lambda: 3, "ann")
    other = worker.submit(lambda: 4, "bob")
    dropped.cancel()
    begin.set()
    assert running.result(10) and other.result(10) == 4
    with pytest.raises(ZeroDivisionError):
        first.result(10)
    assert worker.run(lambda: worker.waiting, "ann") == 1
    worker.close()
    assert worker.submit(lambda: 5).cancelled()


def opened(kept: WorkspaceRegistry, megabytes: int) -> Workspace:
    """A workspace with a volume of that size."""
    workspace = kept.create()
    volume = Volume.from_array(np.zeros((100, 100, 100 * megabytes), dtype=np.uint8), np.eye(4))
    workspace.replace_volume(Session(volume), "case", {})
    return workspace


def test_the_idle_and_large_make_room_and_are_told_why() -> None:
    now = [0.0]
    kept = WorkspaceRegistry(limit=20 * MB, clock=lambda: now[0])
    small, large, mine = opened(kept, 3), opened(kept, 9), opened(kept, 4)
    assert kept.nbytes == 16 * MB
    now[0] = 60.0
    with pytest.raises(VolumeError, match=r"takes 6\.0 MB .*of the 20\.0 MB .* 16\.0 MB are taken"):
        kept.evict(mine, 6 * MB)  # all are at work
    assert len(kept) == 3
    now[0] = 200.0
    kept.get(mine.token)
    folder = large.files.folder
    kept.evict(mine, 6 * MB)
    assert kept.get(large.token) is None and large.opened is None and not folder.exists()
    assert "others needed its memory" in kept.why_ended(large.token)
    assert kept.get(small.token) is small and kept.nbytes == 7 * MB
    with pytest.raises(VolumeError):
        kept.evict(mine, 30 * MB)
    assert kept.get(mine.token) is mine


def test_a_volume_that_two_share_counts_once() -> None:
    kept = WorkspaceRegistry(limit=20 * MB)
    first, second = opened(kept, 5), kept.create()
    assert first.opened is not None
    second.replace_volume(Session(first.opened.volume), "case", {})
    assert kept.nbytes == 5 * MB


@pytest.mark.slow
def test_what_predictors_remember_goes_before_anybodys_work(tmp_path: Path) -> None:
    """Measured on the real thing: masks are counted, let go of, and come back the same."""
    now = [0.0]
    service = Service(workspaces=WorkspaceRegistry(limit=10**9, clock=lambda: now[0]))
    kept = service.workspaces
    one, two = kept.create(), kept.create()
    service.open(one, Source(source="sample"))
    assert one.opened is not None
    session = one.opened.session
    assert session.predictor is not None
    before = kept.nbytes
    assert before == one.opened.volume.array.nbytes
    owner = session.add_object()
    session.add_prompt(owner.id, Point(coordinates=(70, 85, 52)))
    made = service.work(one, lambda: session.prediction(owner.id)).result()
    assert made is not None and session.predictor.nbytes > 10**5
    assert kept.nbytes == before + made.nbytes + session.predictor.nbytes
    now[0] = 1000.0
    kept.limit = before + made.nbytes + 1000
    kept.evict(two)
    assert session.predictor.nbytes == 0 and kept.get(one.token) is one
    session._predictions.clear()
    again = session.prediction(owner.id)
    assert again is not None and np.array_equal(again.mask, made.mask)
    service.close()
    assert kept.nbytes == 0 and len(kept) == 0
