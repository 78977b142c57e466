"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from medsam_app.models import fetch
from medsam_app.models.table import MODELS, Checkpoint, ModelEntry
from tests.support import web_server

# Three tests and their subprocesses run concurrently: one thread each avoids contention.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the browser tests, and order the tests for a run on several workers.

    Each worker starts with an equal part of the list. Slow tests come first in each part, so that no worker
    ends with one. Tests that fork the command line share a part, because each worker that runs one of them
    imports everything once more.
    """
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker("browser")
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    if count == 1:
        return
    forked = [item for item in items if item.get_closest_marker("forked")]
    slow = [item for item in items if item.get_closest_marker("slow") and item not in forked]
    rest = iter([item for item in items if item not in forked and item not in slow])
    size = -(-len(items) // count)
    parts = [[*(forked if worker == 0 else []), *slow[worker::count]] for worker in range(count)]
    for part in parts:
        part += islice(rest, max(0, size - len(part)))
    items[:] = [item for part in parts for item in part]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes that is not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no real volumes here: {folder} is absent")
    return folder


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty download folder, not created yet; no proxy, and short timeouts."""
    monkeypatch.setenv("MEDSAM_APP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setattr(fetch, "TIMEOUTS", (2.0, 0.3))
    return tmp_path / "home" / "checkpoints"


@pytest.fixture
def site() -> Iterator[web_server.Site]:
    """Local web server."""
    with web_server.serving(web_server.CONTENT) as running:
        yield running


@pytest.fixture
def entry(site: web_server.Site, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """Table entry of sam_vit_b, with a checkpoint of 0.9 MB on that server."""
    size, sha256 = len(web_server.CONTENT), web_server.SHA256
    small = Checkpoint(
        file="small.pth", size=size, sha256=sha256, url=site.url, licence="MIT", page="its page"
    )
    entry = replace(MODELS["sam_vit_b"], checkpoint=small)
    monkeypatch.setitem(MODELS, "sam_vit_b", entry)
    return entry
