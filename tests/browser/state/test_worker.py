"""Several users of one model: turns, memory, and reasons for eviction."""

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


def test_ten_waiting_clicks_delay_another_user_by_one() -> None:
    worker, order, begin = ModelWorker(), [], threading.Event()
    worker.submit(begin.wait)
    for owner, count in (("ann", 10), ("bob", 3), ("eve", 1)):
        for n in range(count):
            worker.submit(lambda owner=owner, n=n: order.append(owner + str(n)), owner)
    late = worker.submit(lambda: list(order), "last")
    assert worker.waiting == 16
    begin.set()
    assert late.result(10) == ["ann0", "bob0", "eve0"]  # after one job of each owner, before ann's second one
    worker.run(lambda: None, "ann")  # jobs of one owner stay in order
    assert order[3:7] == ["ann1", "bob1", "ann2", "bob2"] and order[7:] == [f"ann{n}" for n in range(3, 10)]
    worker.close()


def test_errors_go_to_the_submitter_and_waiting_jobs_are_bounded() -> None:
    worker, begin = ModelWorker(most_waiting=2), threading.Event()
    running = worker.submit(begin.wait)
    first = worker.submit(lambda: 1 / 0, "ann")
    dropped = worker.submit(lambda: 2, "ann")
    with pytest.raises(SettingsError, match="2 requests of this session wait"):
        worker.submit(lambda: 3, "ann")
    accepted = worker.submit(lambda: 4, "bob")
    dropped.cancel()
    begin.set()
    assert running.result(10) and accepted.result(10) == 4
    with pytest.raises(ZeroDivisionError):
        first.result(10)
    assert worker.run(lambda: worker.waiting, "ann") == 1
    worker.close()
    assert worker.submit(lambda: 5).cancelled()


def open_workspace(registry: WorkspaceRegistry, megabytes: int) -> Workspace:
    """Create a workspace with an open volume of this size."""
    workspace = registry.create()
    volume = Volume.from_array(np.zeros((100, 100, 100 * megabytes), dtype=np.uint8), np.eye(4))
    workspace.replace_volume(Session(volume), "case", {})
    return workspace


def test_large_idle_workspaces_are_evicted_with_a_reason() -> None:
    now = [0.0]
    registry = WorkspaceRegistry(limit=20 * MB, clock=lambda: now[0])
    small, large, current = (open_workspace(registry, megabytes) for megabytes in (3, 9, 4))
    assert registry.nbytes == 16 * MB
    now[0] = 60.0
    with pytest.raises(VolumeError, match=r"takes 6\.0 MB .*of the 20\.0 MB .* 16\.0 MB are taken"):
        registry.evict(current, 6 * MB)  # all workspaces are active
    assert len(registry) == 3
    now[0] = 200.0
    registry.get(current.token)
    folder = large.files.folder
    registry.evict(current, 6 * MB)
    assert registry.get(large.token) is None and large.opened is None and not folder.exists()
    assert "others needed its memory" in registry.why_ended(large.token)
    assert registry.get(small.token) is small and registry.nbytes == 7 * MB
    with pytest.raises(VolumeError):
        registry.evict(current, 30 * MB)
    assert registry.get(current.token) is current


def test_a_volume_that_two_share_counts_once() -> None:
    registry = WorkspaceRegistry(limit=20 * MB)
    first, second = open_workspace(registry, 5), registry.create()
    assert first.opened is not None
    second.replace_volume(Session(first.opened.volume), "case", {})
    assert registry.nbytes == 5 * MB


@pytest.mark.slow
def test_caches_of_predictors_are_freed_before_workspaces(tmp_path: Path) -> None:
    """With the real model: masks count, their caches are freed, and recomputed masks are the same."""
    now = [0.0]
    service = Service(workspaces=WorkspaceRegistry(limit=10**9, clock=lambda: now[0]))
    registry = service.workspaces
    one, two = registry.create(), registry.create()
    service.open(one, Source(source="sample"))
    assert one.opened is not None
    session = one.opened.session
    assert session.predictor is not None
    before = registry.nbytes
    assert before == one.opened.volume.array.nbytes
    owner = session.add_object()
    session.add_prompt(owner.id, Point(coordinates=(70, 85, 52)))
    prediction = service.work(one, lambda: session.prediction(owner.id)).result()
    assert prediction is not None and session.predictor.nbytes > 10**5
    assert registry.nbytes == before + prediction.nbytes + session.predictor.nbytes
    now[0] = 1000.0
    registry.limit = before + prediction.nbytes + 1000
    registry.evict(two)
    assert session.predictor.nbytes == 0 and registry.get(one.token) is one
    session._predictions.clear()
    again = session.prediction(owner.id)
    assert again is not None and np.array_equal(again.mask, prediction.mask)
    service.close()
    assert registry.nbytes == 0 and len(registry) == 0
