"""Folders of DICOM slices that a page sends: whole, bounded, and nowhere but in their place."""

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
    """Run a coroutine in a thread of its own: the browser tests leave a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture(scope="module")
def service():
    made = Service(upload_bytes=LIMIT, model=build_sam3d_tiny())  # nothing is segmented
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def mine(client):
    return {"X-Medsam-Session": client.post("/medsam/api/session").json()["token"]}


@pytest.fixture
def place(service, mine) -> Workspace:
    return service.workspaces.get(mine["X-Medsam-Session"])


def packed(files: list[tuple[str, bytes]]) -> bytes:
    """What the page makes of files: a list of names and sizes, then the files."""
    listed = json.dumps([{"name": name, "size": len(data)} for name, data in files]).encode()
    return struct.pack("<I", len(listed)) + listed + b"".join(data for _, data in files)


def of_folder(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def send(client, mine, body, name="study"):
    return client.post("/medsam/api/upload-folder", params={"name": name}, headers=mine, content=body)


def in_parts(body: bytes, length: int):
    """A body in small blocks, without a Content-Length."""
    return (body[at : at + length] for at in range(0, len(body), length))


def open_upload(client, mine, sent, **choice):
    source = {"source": "upload", "upload": sent.json()["upload"], **choice}
    return client.post("/medsam/api/open", headers=mine, json=source)


def left(workspace: Workspace) -> list[Path]:
    """What lies in a workspace's folder."""
    return list(workspace.files.folder.rglob("*"))


@pytest.mark.parametrize("length", [1, 7, 1000, 10**6])
def test_slices_arrive_however_the_body_is_cut(client, mine, tmp_path, length):
    write_series(tmp_path, SLICES)
    files = [(name.removesuffix(".dcm"), data) for name, data in of_folder(tmp_path)]
    body = packed([("notes.txt", b"hello"), *files, ("empty", b"")])
    sent = send(client, mine, in_parts(body, length))
    opened = open_upload(client, mine, sent)
    assert opened.status_code == 200, opened.text
    volume = opened.json()["volume"]
    assert volume["name"] == "study" and volume["file_shape"] == [8, 9, 6]
    voxels = client.get("/medsam/api/volume", headers=mine).content
    shown = np.frombuffer(voxels, volume["dtype"]).reshape(volume["shape"], order="F")
    assert np.array_equal(shown, SLICES.astype(int)[::-1, ::-1] - 1024)


@pytest.mark.slow
def test_two_series_are_a_choice_and_the_files_stay_until_another_is_open(client, mine, place, tmp_path):
    write_series(tmp_path / "a", SLICES, series="1.2.3.4")
    write_series(tmp_path / "b", SLICES[..., :4] + 7, series="1.2.3.5")
    sent = send(client, mine, packed(of_folder(tmp_path)))
    asked = open_upload(client, mine, sent)
    assert asked.status_code == 422 and asked.json()["choice"]["option"] == "series"
    choices = asked.json()["choice"]["choices"]
    assert [value for value, _ in choices] == ["1.2.3.4", "1.2.3.5"]
    volume = open_upload(client, mine, sent, series=choices[1][0]).json()["volume"]
    assert volume["file_shape"] == [8, 9, 4] and volume["range"][0] == 7 - 1024
    # The other series can be had without sending it again.
    assert volume["parts"] == {"series": choices} and volume["source"]["series"] == "1.2.3.5"
    volume = open_upload(client, mine, sent, series=choices[0][0]).json()["volume"]
    assert volume["file_shape"] == [8, 9, 6] and set(place.files.uploads) == {sent.json()["upload"]}
    client.post("/medsam/api/open", headers=mine, json={"source": "sample"})
    assert left(place) == [] and place.files.uploads == {}


def test_one_multi_frame_file_is_sent_by_itself(client, mine, tmp_path):
    body = write_enhanced(tmp_path / "one.dcm", SLICES).read_bytes()
    sent = client.post("/medsam/api/upload", params={"name": "enhanced.dcm"}, headers=mine, content=body)
    volume = open_upload(client, mine, sent).json()["volume"]
    assert volume["name"] == "enhanced" and volume["file_spacing"] == pytest.approx([0.5, 0.8, 2])


def test_no_name_decides_where_a_byte_lands(client, mine, place, tmp_path):
    data = of_folder(write_series(tmp_path, SLICES))[0][1]
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
    sent = send(client, mine, packed([(name, data) for name in hostile]), name="../../../evil")
    assert sent.status_code == 200
    base = Path(os.path.realpath(place.files.folder))
    found = [path for path in left(place) if path.is_file()]
    assert len(found) == len(hostile)
    assert all(path.resolve().is_relative_to(base) and path.read_bytes() == data for path in found)
    assert not list(base.parent.glob("*evil*"))


def test_only_dicom_is_kept(client, mine, place):
    sent = send(client, mine, packed([("viewer.exe", b"MZ" + b"\0" * 1000), ("readme.txt", b"hello")]))
    assert all(path.stat().st_size == 0 for path in left(place) if path.is_file())
    refused = open_upload(client, mine, sent)
    assert refused.status_code == 422
    assert "study" in refused.json()["error"] and "1 .exe file(s)" in refused.json()["error"]


def test_bounds_and_damage_are_sentences_and_leave_nothing(client, mine, place, tmp_path, monkeypatch):
    files = of_folder(write_series(tmp_path, SLICES))
    body = packed(files)
    listed = [{"name": "a", "size": LIMIT // 2 + 1}] * 2
    as_list = lambda value: struct.pack("<I", len(value)) + value  # noqa: E731
    bad = [
        (body[:-1], 400, "broke off"),
        (body[:2], 400, "broke off"),
        (b"", 400, "broke off"),
        (as_list(json.dumps(listed).encode()), 413, "larger than"),
        (as_list(b'[{"name": "a", "size": -1}]'), 422, "reload"),
        (as_list(b"not json"), 422, "reload"),
        (as_list(b"[]"), 422, "no files"),
        (struct.pack("<I", 2**32 - 1), 413, "files"),
    ]
    for content, status, words in bad:
        answer = send(client, mine, content)
        assert answer.status_code == status and words in answer.json()["error"], answer.text
        assert left(place) == [] and place.files.uploads == {}
    monkeypatch.setattr(uploads, "UPLOAD_FILES", len(files) - 1)
    answer = send(client, mine, body)
    assert answer.status_code == 413 and f"more than {len(files) - 1} files" in answer.json()["error"]
    assert left(place) == []


def test_a_full_disk_is_a_sentence(client, mine, place, tmp_path, monkeypatch):
    files = of_folder(write_series(tmp_path, SLICES))

    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "_write_dicom", full)
    answer = send(client, mine, packed(files))
    assert answer.status_code == 507 and "make room" in answer.json()["error"]
    assert left(place) == []


def test_a_new_upload_replaces_the_last_and_all_go_with_the_workspace(client, service, mine, place, tmp_path):
    files = of_folder(write_series(tmp_path, SLICES))
    first = send(client, mine, packed(files)).json()["upload"]
    send(client, mine, packed(files[:2]))
    assert first not in place.files.uploads
    assert sum(path.is_file() for path in left(place)) == 2
    folder = place.files.folder
    place.close()
    assert not folder.exists()


async def blocks_of(body: bytes, then=lambda: None):
    """A body in two blocks, with something done between them."""
    yield body[: len(body) // 2]
    await asyncio.to_thread(then)
    yield body[len(body) // 2 :]


def test_disks_are_left_to_threads(tmp_path, monkeypatch):
    body = packed(of_folder(write_series(tmp_path, SLICES)))
    workspace, busy, threads = Workspace(), [True], []

    def watched(work):
        def run(*args, **options):
            if busy[0]:
                threads.append(threading.current_thread())
            return work(*args, **options)

        return run

    for owner, name in ((Path, "mkdir"), (Path, "open"), (tempfile, "mkdtemp"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    loops = set()

    async def receive(what, *arguments):
        loops.add(threading.current_thread())
        await what(workspace, *arguments, limit=LIMIT)

    run(receive(uploads.receive_folder, "study", blocks_of(body)))
    run(receive(uploads.receive_folder, "study", blocks_of(body)))
    with pytest.raises(HTTPException):
        run(receive(uploads.receive_folder, "study", blocks_of(body[:-1])))
    run(receive(uploads.receive_file, "a.nii", blocks_of(b"hello")))
    busy[0] = False
    assert len(threads) > 3 * 12 and not loops & set(threads)
    workspace.close()


def test_uploads_one_after_the_other_leave_each_other_alone(client, mine, place, tmp_path, monkeypatch):
    bodies = []
    for number in (1, 2):
        folder = write_series(tmp_path / f"{number}", SLICES + number)
        bodies.append(packed(of_folder(folder)))
    first, sent = send(client, mine, bodies[0]), []
    load = service_module.load_volume

    def load_meanwhile(path, **choice):
        if not sent:
            sent.append(send(client, mine, bodies[1]))  # the next arrives before the first is read
        return load(path, **choice)

    monkeypatch.setattr(service_module, "load_volume", load_meanwhile)
    assert open_upload(client, mine, first).json()["volume"]["range"][0] == 1 - 1024
    both = {first.json()["upload"], sent[0].json()["upload"]}  # segmentations refer to the slices
    assert set(place.files.uploads) == both
    assert open_upload(client, mine, sent[0]).json()["volume"]["range"][0] == 2 - 1024
    assert set(place.files.uploads) == {sent[0].json()["upload"]}
    assert "choose the file again" in open_upload(client, mine, first).json()["error"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_workspace_closed_meanwhile_leaves_no_files(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    body = packed(of_folder(write_series(tmp_path / "series", SLICES)))
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
