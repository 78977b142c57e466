"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medsam_app.models import fetch
from medsam_app.models.table import MODELS, Checkpoint, ModelEntry
from tests.support import web_server

# Three tests run at a time, and processes of theirs: one thread each, rather than all waiting for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


#: Files whose tests take longest: they are begun first, so that none is left alone at the end.
LONG = (
    "test_published",
    "test_finetune",
    "test_teach_job",
    "test_preflight",
    "test_style",
    "test_pretrain_command",
)
WORKERS = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each worker begins with an equal part of the list: the long tests stand first in each."""
    long = [item for item in items if item.path.stem.startswith(LONG)]
    rest = [item for item in items if not item.path.stem.startswith(LONG)]
    if len(long) + len(rest) < 500:  # some files alone: as they stand
        return
    part = -(-len(rest) // WORKERS)
    ordered: list[pytest.Item] = []
    for worker in range(WORKERS):
        ordered += long[worker::WORKERS] + rest[worker * part : (worker + 1) * part]
    items[:] = ordered


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes that is not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no real volumes here: {folder} is absent")
    return folder


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads, not there yet; nothing goes through a proxy or is waited for long."""
    monkeypatch.setenv("MEDSAM_APP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(fetch, "PATIENCE", (2.0, 0.3))
    return tmp_path / "home" / "checkpoints"


@pytest.fixture
def site() -> Iterator[web_server.Site]:
    """A web server on this machine."""
    with web_server.serving(web_server.CONTENT) as running:
        yield running


@pytest.fixture
def entry(site: web_server.Site, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """sam_vit_b of the table, with a checkpoint of 0.9 MB on that server."""
    size, sha256 = len(web_server.CONTENT), web_server.SHA256
    small = Checkpoint(
        file="small.pth", size=size, sha256=sha256, url=site.url, licence="MIT", page="its page"
    )
    entry = replace(MODELS["sam_vit_b"], checkpoint=small)
    monkeypatch.setitem(MODELS, "sam_vit_b", entry)
    return entry
