"""Uploads of folders with DICOM slices: complete, bounded, and stored safely."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from starlette.testclient import TestClient

from medsam_app.browser.app import create_app
from medsam_app.browser.routes import uploads
from medsam_app.browser.state import service as service_module
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.models.sam3d import build_sam3d_tiny
from tests.support.dicom_enhanced import write_enhanced
from tests.support.dicom_files import write_series

LIMIT = 100_000
SLICES = np.arange(8 * 9 * 6, dtype=np.uint16).reshape(8, 9, 6)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a new thread, since the browser tests leave a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture(scope="module")
def service():
    service = Service(upload_bytes=LIMIT, model=build_sam3d_tiny())  # no test segments
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def headers(client):
    return {"X-Medsam-Session": client.post("/medsam/api/session").json()["token"]}


@pytest.fixture
def workspace(service, headers) -> Workspace:
    return service.workspaces.get(headers["X-Medsam-Session"])


def packed(files: list[tuple[str, bytes]]) -> bytes:
    """Return the request's body for a folder: a list of names and sizes, then the files."""
    entries = json.dumps([{"name": name, "size": len(data)} for name, data in files]).encode()
    return struct.pack("<I", len(entries)) + entries + b"".join(data for _, data in files)


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    """Return name and content of each file in a folder."""
    return [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def send(client, headers, body, name="study"):
    return client.post("/medsam/api/upload-folder", params={"name": name}, headers=headers, content=body)


def in_parts(body: bytes, length: int):
    """Split a body into small blocks, which are sent without a Content-Length."""
    return (body[start : start + length] for start in range(0, len(body), length))


def open_upload(client, headers, uploaded, **choice):
    source = {"source": "upload", "upload": uploaded.json()["upload"], **choice}
    return client.post("/medsam/api/open", headers=headers, json=source)


def stored(workspace: Workspace) -> list[Path]:
    """Return all files and folders in a workspace's folder."""
    return list(workspace.files.folder.rglob("*"))


@pytest.mark.parametrize("length", [1, 7, 1000, 10**6])
def test_slices_arrive_however_the_body_is_cut(client, headers, tmp_path, length):
    write_series(tmp_path, SLICES)
    files = [(name.removesuffix(".dcm"), data) for name, data in files_of(tmp_path)]
    body = packed([("notes.txt", b"hello"), *files, ("empty", b"")])
    sent = send(client, headers, in_parts(body, length))
    opened = open_upload(client, headers, sent)
    assert opened.status_code == 200, opened.text
    volume = opened.json()["volume"]
    assert volume["name"] == "study" and volume["file_shape"] == [8, 9, 6]
    voxels = client.get("/medsam/api/volume", headers=headers).content
    shown = np.frombuffer(voxels, volume["dtype"]).reshape(volume["shape"], order="F")
    assert np.array_equal(shown, SLICES.astype(int)[::-1, ::-1] - 1024)


@pytest.mark.slow
def test_two_series_are_a_choice_and_the_files_stay_while_one_is_open(client, headers, workspace, tmp_path):
    write_series(tmp_path / "a", SLICES, series="1.2.3.4")
    write_series(tmp_path / "b", SLICES[..., :4] + 7, series="1.2.3.5")
    sent = send(client, headers, packed(files_of(tmp_path)))
    refused = open_upload(client, headers, sent)
    assert refused.status_code == 422 and refused.json()["choice"]["option"] == "series"
    choices = refused.json()["choice"]["choices"]
    assert [value for value, _ in choices] == ["1.2.3.4", "1.2.3.5"]
    volume = open_upload(client, headers, sent, series=choices[1][0]).json()["volume"]
    assert volume["file_shape"] == [8, 9, 4] and volume["range"][0] == 7 - 1024
    # The other series can be opened without another upload.
    assert volume["parts"] == {"series": choices} and volume["source"]["series"] == "1.2.3.5"
    volume = open_upload(client, headers, sent, series=choices[0][0]).json()["volume"]
    assert volume["file_shape"] == [8, 9, 6] and set(workspace.files.uploads) == {sent.json()["upload"]}
    client.post("/medsam/api/open", headers=headers, json={"source": "sample"})
    assert stored(workspace) == [] and workspace.files.uploads == {}


def test_a_multi_frame_file_is_uploaded_as_a_single_file(client, headers, tmp_path):
    body = write_enhanced(tmp_path / "one.dcm", SLICES).read_bytes()
    sent = client.post("/medsam/api/upload", params={"name": "enhanced.dcm"}, headers=headers, content=body)
    volume = open_upload(client, headers, sent).json()["volume"]
    assert volume["name"] == "enhanced" and volume["file_spacing"] == pytest.approx([0.5, 0.8, 2])


def test_names_do_not_decide_where_files_are_stored(client, headers, workspace, tmp_path):
    data = files_of(write_series(tmp_path, SLICES))[0][1]
    hostile = [
        "../../evil.dcm",
        "/etc/evil.dcm",
        "..\\evil.dcm",
        "..",
        ".",
        "",
        "a\0b",
        "切" * 300,
        ".hidden",
    ]
    sent = send(client, headers, packed([(name, data) for name in hostile]), name="../../../evil")
    assert sent.status_code == 200
    base = Path(os.path.realpath(workspace.files.folder))
    files = [path for path in stored(workspace) if path.is_file()]
    assert len(files) == len(hostile)
    assert all(path.resolve().is_relative_to(base) and path.read_bytes() == data for path in files)
    assert not list(base.parent.glob("*evil*"))


def test_only_dicom_is_kept(client, headers, workspace):
    sent = send(client, headers, packed([("viewer.exe", b"MZ" + b"\0" * 1000), ("readme.txt", b"hello")]))
    assert all(path.stat().st_size == 0 for path in stored(workspace) if path.is_file())
    refused = open_upload(client, headers, sent)
    assert refused.status_code == 422
    assert "study" in refused.json()["error"] and "1 .exe file(s)" in refused.json()["error"]


def test_bad_uploads_are_refused_and_leave_no_files(client, headers, workspace, tmp_path, monkeypatch):
    files = files_of(write_series(tmp_path, SLICES))
    body = packed(files)
    entries = [{"name": "a", "size": LIMIT // 2 + 1}] * 2
    as_list = lambda value: struct.pack("<I", len(value)) + value  # noqa: E731
    bad = [
        (body[:-1], 400, "broke off"),
        (body[:2], 400, "broke off"),
        (b"", 400, "broke off"),
        (as_list(json.dumps(entries).encode()), 413, "larger than"),
        (as_list(b'[{"name": "a", "size": -1}]'), 422, "reload"),
        (as_list(b"not json"), 422, "reload"),
        (as_list(b"[]"), 422, "no files"),
        (struct.pack("<I", 2**32 - 1), 413, "files"),
    ]
    for content, status, words in bad:
        answer = send(client, headers, content)
        assert answer.status_code == status and words in answer.json()["error"], answer.text
        assert stored(workspace) == [] and workspace.files.uploads == {}
    monkeypatch.setattr(uploads, "UPLOAD_FILES", len(files) - 1)
    answer = send(client, headers, body)
    assert answer.status_code == 413 and f"more than {len(files) - 1} files" in answer.json()["error"]
    assert stored(workspace) == []


def test_a_full_disk_is_a_sentence(client, headers, workspace, tmp_path, monkeypatch):
    files = files_of(write_series(tmp_path, SLICES))

    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "_write_dicom", full)
    answer = send(client, headers, packed(files))
    assert answer.status_code == 507 and "make room" in answer.json()["error"]
    assert stored(workspace) == []


def test_uploads_are_deleted_by_the_next_and_with_the_workspace(
    client, service, headers, workspace, tmp_path
):
    files = files_of(write_series(tmp_path, SLICES))
    first = send(client, headers, packed(files)).json()["upload"]
    send(client, headers, packed(files[:2]))
    assert first not in workspace.files.uploads
    assert sum(path.is_file() for path in stored(workspace)) == 2
    folder = workspace.files.folder
    workspace.close()
    assert not folder.exists()


async def blocks_of(body: bytes, then=lambda: None):
    """Yield a body in two blocks; call `then` between them."""
    yield body[: len(body) // 2]
    await asyncio.to_thread(then)
    yield body[len(body) // 2 :]


def test_disk_access_runs_in_threads(tmp_path, monkeypatch):
    body = packed(files_of(write_series(tmp_path, SLICES)))
    workspace, busy, threads = Workspace(), [True], []

    def recorded(function):
        def record_thread(*args, **options):
            if busy[0]:
                threads.append(threading.current_thread())
            return function(*args, **options)

        return record_thread

    for owner, name in ((Path, "mkdir"), (Path, "open"), (tempfile, "mkdtemp"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, recorded(getattr(owner, name)))
    loops = set()

    async def receive(handler, *arguments):
        loops.add(threading.current_thread())
        await handler(workspace, *arguments, limit=LIMIT)

    run(receive(uploads.receive_folder, "study", blocks_of(body)))
    run(receive(uploads.receive_folder, "study", blocks_of(body)))
    with pytest.raises(HTTPException):
        run(receive(uploads.receive_folder, "study", blocks_of(body[:-1])))
    run(receive(uploads.receive_file, "a.nii", blocks_of(b"hello")))
    busy[0] = False
    assert len(threads) > 3 * 12 and not loops & set(threads)
    workspace.close()


def test_consecutive_uploads_do_not_affect_each_other(client, headers, workspace, tmp_path, monkeypatch):
    bodies = []
    for number in (1, 2):
        folder = write_series(tmp_path / f"{number}", SLICES + number)
        bodies.append(packed(files_of(folder)))
    first, sent = send(client, headers, bodies[0]), []
    load = service_module.load_volume

    def load_meanwhile(path, **choice):
        if not sent:
            sent.append(send(client, headers, bodies[1]))  # the second arrives before the first is read
        return load(path, **choice)

    monkeypatch.setattr(service_module, "load_volume", load_meanwhile)
    assert open_upload(client, headers, first).json()["volume"]["range"][0] == 1 - 1024
    both = {
        first.json()["upload"],
        sent[0].json()["upload"],
    }  # DICOM segmentations refer to the slices
    assert set(workspace.files.uploads) == both
    assert open_upload(client, headers, sent[0]).json()["volume"]["range"][0] == 2 - 1024
    assert set(workspace.files.uploads) == {sent[0].json()["upload"]}
    assert "choose the file again" in open_upload(client, headers, first).json()["error"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_workspace_closed_during_an_upload_leaves_no_files(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    body = packed(files_of(write_series(tmp_path / "series", SLICES)))
    for close_at in (0, 1):
        workspace = Workspace()
        if close_at == 0:
            workspace.close()
        blocks = blocks_of(body, workspace.close)
        receive, name = (uploads.receive_folder, "study") if folder else (uploads.receive_file, "a.nii")
        with pytest.raises(HTTPException, match="has ended") as refused:
            run(receive(workspace, name, blocks, limit=LIMIT))
        assert refused.value.status_code == 401 and workspace.files.uploads == {}
        assert list((tmp_path / "temporary").iterdir()) == []
