"""Server of the browser app: access, responses, and answers to bad requests."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from gradio.queueing import Queue
from starlette.testclient import TestClient

from medsam_app.browser.app import build, create_app, is_loopback, slow_polling
from medsam_app.browser.protocol import allowed_files
from medsam_app.browser.routes.script_api import Api
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspace_registry import WorkspaceRegistry
from medsam_app.errors import VolumeError
from tests.support.closed_folder import close

HOME = "http://127.0.0.1"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    (folder / "inner").mkdir()
    (folder / "notes.txt").write_text("not a volume")
    rng = np.random.default_rng(0)
    nib.save(
        nib.Nifti1Image(rng.normal(size=(20, 18, 16)).astype("f4"), np.eye(4)), folder / "inner/a.nii.gz"
    )
    secret = tmp_path_factory.mktemp("secret") / "b.nii.gz"
    secret.write_bytes((folder / "inner/a.nii.gz").read_bytes())
    (folder / "link.nii.gz").symlink_to(secret)
    service = Service(roots=[folder], upload_bytes=200_000)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url=HOME, raise_server_exceptions=False)


@pytest.fixture
def headers(client):
    """Headers of a new session."""
    return {"X-Medsam-Session": client.post("/medsam/api/session").json()["token"]}


def unpack(body: bytes) -> tuple[dict, list[np.ndarray]]:
    """Decode a frame like the page: the header, and the masks in the browser's axes."""
    length = int.from_bytes(body[:4], "little")
    header, rest, masks = json.loads(body[4 : 4 + length]), body[4 + length :], []
    for part in header["masks"]:
        stored, rest = rest[: part["bytes"]], rest[part["bytes"] :]
        bits = zlib.decompress(stored) if part["deflated"] else stored
        flat = np.unpackbits(np.frombuffer(bits, "u1"), bitorder="little")
        indices = np.tensordot(part["strides"], np.indices(part["size"]), axes=1) + part["first"]
        masks.append(flat[indices].astype(bool))
    assert not rest
    return header, masks


def act(client, headers, **action):
    have = action.pop("have", [])
    return client.post("/medsam/api/act", headers=headers, json={"action": action, "have": have})


# Access


def test_only_names_of_the_loopback_are_answered(client):
    assert client.get("/medsam/static/viewer.js").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[::1", "192.168.0.7:7860"):
        assert client.get("/", headers={"Host": host}).status_code == 403, host
    assert client.get("/medsam/static/viewer.js", headers={"Host": "localhost:7860"}).status_code == 200


def test_other_sites_cannot_change_anything(client):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/medsam/api/session", headers=headers).status_code == 403, headers
        assert client.post("/gradio_api/queue/join", headers=headers, json={}).status_code == 403, headers
    assert client.post("/medsam/api/session", headers={"Origin": HOME}).status_code == 200


def test_a_password_guards_every_route(service):
    app = create_app(service, auth=[("ann", "s3cret"), ("bob", "hünter")])
    client = TestClient(app, base_url=HOME)
    for path in ("/", "/config", "/medsam/static/viewer.js", "/medsam/api/progress"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, auth=("ann", "wrong")).status_code == 401, path
    assert client.get("/", auth=("ann", "s3cret")).status_code == 200
    assert client.get("/", auth=("bob", "hünter".encode())).status_code == 200
    assert client.get("/", headers={"Authorization": "Basic ???"}).status_code == 401


def test_a_forged_session_gets_nothing(client, headers):
    assert client.get("/medsam/api/progress", headers=headers).status_code == 200
    for token in ("", "x" * 43, headers["X-Medsam-Session"][:-1]):
        answer = client.get("/medsam/api/volume", headers={"X-Medsam-Session": token})
        assert answer.status_code == 401 and "reload" in answer.json()["error"]
    # A forged token is not accepted: the page gets a new one.
    assert client.post("/medsam/api/session", headers={"X-Medsam-Session": "mine"}).json()["token"] != "mine"


def test_the_page_loads_nothing_from_other_hosts(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    for text in (page.text, client.get("/theme.css").text):
        assert "fonts.googleapis" not in text and "cdnjs" not in text


def test_our_scripts_come_before_gradios(client):
    page = client.get("/", headers={"Accept-Encoding": "br, gzip"})
    assert page.headers["content-length"] == str(len(page.content))
    ours = '<head><script src="medsam/static/frames.js"></script><link rel="modulepreload"'
    assert page.text.count(ours) == 1 and page.text.count("frames.js") == 1
    assert page.text.index(ours) < page.text.index("/assets/")
    assert "frames.js" not in client.get("/config").text


def test_which_hosts_are_loopback():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


def test_gradio_polls_slowly_where_it_has_the_setting(service, monkeypatch):
    blocks = build(Api(service, service.exchange))
    assert blocks._queue.sleep_when_free == 0.02

    del blocks._queue.sleep_when_free  # as in a version without this attribute
    slow_polling(blocks)
    assert not hasattr(blocks._queue, "sleep_when_free")

    original = Queue.__init__

    def init_without_attribute(queue, *args, **options):
        original(queue, *args, **options)
        del queue.sleep_when_free

    monkeypatch.setattr(Queue, "__init__", init_without_attribute)
    page = TestClient(create_app(service), base_url=HOME).get("/")
    assert page.status_code == 200 and "medsam-viewer" in page.text


# Workspaces


def test_workspaces_are_bounded_and_the_least_recently_used_is_evicted():
    registry = WorkspaceRegistry(most=2)
    first, second = registry.create(), registry.create()
    folder = second.files.folder
    assert registry.get(first.token) is first
    registry.create()
    assert registry.get(second.token) is None and registry.get(first.token) is first and len(registry) == 2
    assert not folder.exists()


def test_idle_workspaces_are_freed():
    registry = WorkspaceRegistry(idle_seconds=-1)
    token = registry.create().token
    assert registry.get(token) is None and len(registry) == 0
    assert "not used for hours" in registry.why_ended(token)


# Files


def test_only_files_within_the_roots_are_opened(service, client, headers):
    names = [
        entry["name"] for entry in client.get("/medsam/api/files?root=0", headers=headers).json()["entries"]
    ]
    assert names == ["inner"]
    for path in ("../secret", "/etc/passwd", "link.nii.gz", "inner/../../x", "no.nii", "a\0b"):
        with pytest.raises(VolumeError, match="not"):
            allowed_files.resolve(service.roots, 0, path)
        answer = client.post("/medsam/api/open", headers=headers, json={"source": "folder", "path": path})
        assert answer.status_code == 422 and "choose" in answer.json()["error"], path
    with pytest.raises(VolumeError):
        allowed_files.resolve(service.roots, 1, "")
    with pytest.raises(VolumeError):
        allowed_files.resolve(service.roots, -1, "")


def test_an_unreadable_entry_does_not_hide_others(service, client, headers, tmp_path, monkeypatch):
    odd = os.fsdecode(b"bild_\xfc")
    for name in ("b.nii.gz", "A/x", f"{odd}.nii.gz", f"{odd}/x", "closed/x", "slices/0", "slices/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM" if name == "slices/1" else b"x")
    for name, target in (("ring.nii.gz", "ring.nii.gz"), ("ring", "ring"), ("gone.nii.gz", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "slices/ring").symlink_to(tmp_path / "slices/ring")
    monkeypatch.setattr(service, "roots", [tmp_path])
    close(monkeypatch, tmp_path / "closed")
    original = Path.open

    def open_or_refuse(path, *arguments):
        if path == tmp_path / "slices/0":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments)

    monkeypatch.setattr(Path, "open", open_or_refuse)
    answer = client.get("/medsam/api/files?root=0", headers=headers)
    assert answer.status_code == 200, answer.text
    assert [(entry["name"], entry["kind"]) for entry in answer.json()["entries"]] == [
        ("A", "folder"), ("slices", "dicom"), ("b.nii.gz", "file")
    ]  # fmt: skip
    close(monkeypatch, tmp_path)
    answer = client.get("/medsam/api/files?root=0", headers=headers)
    assert answer.status_code == 422 and "Permission denied" in answer.json()["error"]


def test_uploads_are_bounded_and_named(client, headers):
    def post(name, body):
        return client.post("/medsam/api/upload", params={"name": name}, headers=headers, content=body)

    assert post("a.exe", b"x").status_code == 422
    too_large = post("a.nii", b"x" * 200_001)
    assert too_large.status_code == 413 and "GB" in too_large.json()["error"]
    parts = (b"x" * 50_000 for _ in range(5))  # sent without Content-Length
    assert post("a.nii", parts).status_code == 413
    uploaded = post("../../etc/cron.nii", b"not an image")
    assert uploaded.status_code == 200
    opened = client.post(
        "/medsam/api/open", headers=headers, json={"source": "upload", "upload": uploaded.json()["upload"]}
    )
    assert opened.status_code == 422 and "cron.nii" in opened.json()["error"]
    assert "Traceback" not in opened.text


def test_an_upload_opens_and_its_voxels_arrive(client, headers, tmp_path):
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 30
    affine = np.array([[0, -2, 0, 1], [1.5, 0, 0, 2], [0, 0, -3, 3], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "x.nii.gz")
    body = (tmp_path / "x.nii.gz").read_bytes()
    upload = client.post(
        "/medsam/api/upload", params={"name": "my case.nii.gz"}, headers=headers, content=body
    ).json()
    volume = client.post("/medsam/api/open", headers=headers, json={"source": "upload", **upload}).json()[
        "volume"
    ]
    assert volume["name"] == "my case" and volume["shape"] == [5, 6, 4] and volume["spacing"] == [2, 1.5, 3]
    voxels = client.get("/medsam/api/volume", headers=headers).content
    assert len(voxels) == volume["bytes"]
    shown = np.frombuffer(voxels, volume["dtype"]).reshape(volume["shape"], order="F")
    # Axes closest to RAS: x runs against j, y along i, z against k.
    assert np.array_equal(shown, array.transpose(1, 0, 2)[::-1, :, ::-1])


# Encoding


def test_clicks_undo_and_two_sessions(client, headers):
    client.post("/medsam/api/open", headers=headers, json={"source": "folder", "path": "inner/a.nii.gz"})
    body, masks = unpack(
        act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [9, 9, 8]}).content
    )
    (item,) = body["state"]["objects"]
    assert len(masks) == 1 and masks[0].any() and item["mask"] == body["masks"][0]["key"]
    # Cached masks are not sent again, not even after undo and redo.
    act(client, headers, do="undo")
    body, masks = unpack(act(client, headers, do="redo", have=[item["mask"]]).content)
    assert body["state"]["objects"][0]["mask"] == item["mask"] and masks == []

    second = {"X-Medsam-Session": client.post("/medsam/api/session").json()["token"]}
    assert act(client, second, do="look").status_code == 422  # no volume is open in it
    client.post("/medsam/api/open", headers=second, json={"source": "folder", "path": "inner/a.nii.gz"})
    assert unpack(act(client, second, do="look").content)[0]["state"]["objects"] == []


def test_bad_actions_are_sentences_and_change_nothing(client, headers):
    client.post("/medsam/api/open", headers=headers, json={"source": "folder", "path": "inner/a.nii.gz"})
    act(client, headers, do="add_object", name="liver")
    before = unpack(act(client, headers, do="look").content)[0]["state"]
    bad = [
        {"do": "add_prompt", "prompt": {"kind": "point", "coordinates": [99, 9, 8]}},
        {"do": "add_prompt", "prompt": {"kind": "point", "coordinates": [float(10**9), 0, 0]}},
        {"do": "add_prompt", "prompt": {"kind": "spell"}},
        {"do": "delete_prompt", "object": "o1", "index": 4},
        {"do": "change_object", "object": "o1", "label": -3},
        {"do": "change_object", "object": "o1", "colour": "red"},
        {"do": "select", "object": "nobody"},
        {"do": "format_disk"},
    ]
    for action in bad:
        answer = act(client, headers, **action)
        assert answer.status_code == 422 and answer.json()["error"].endswith("."), action
        assert "Traceback" not in answer.text
    assert unpack(act(client, headers, do="look").content)[0]["state"] == before
    replay = client.post("/medsam/api/prompts", headers=headers, content=b"{}")
    assert replay.status_code == 422 and "prompt file" in replay.json()["error"]
    assert "/tmp" not in replay.json()["error"]


def test_masks_are_changed_by_hand(client, headers):
    client.post("/medsam/api/open", headers=headers, json={"source": "folder", "path": "inner/a.nii.gz"})
    answer = act(client, headers, do="paint", points=[[5, 5, 5], [9, 5, 5]], radius=3, axis=None)
    body, (mask,) = unpack(answer.content)
    (item,) = body["state"]["objects"]
    (prompt,) = item["prompts"]
    assert mask.sum() > 100 and prompt["kind"] == "paint" and "packed" not in answer.text
    assert (prompt["lower"], prompt["upper"]) == ([2, 2, 2], [12, 8, 8])
    act(client, headers, do="lock", object="o1", axis=2, index=5, locked=True)
    body, _ = unpack(act(client, headers, do="tool", object="o1", tool="grow", mm=1).content)
    assert body["state"]["objects"][0]["locks"] == [{"axis": 2, "index": 5}]
    before = body["state"]
    stroke = {"do": "paint", "points": [[5, 5, 5]], "radius": 3}
    bad = [
        stroke | {"radius": 1e9},
        stroke | {"radius": 0},
        stroke | {"points": []},
        stroke | {"points": [[1, 2]]},
        stroke | {"points": [[1e300, 0, 0]]},
        stroke | {"points": [[5, 5, 5]] * 5000},
        stroke | {"axis": 3},
        {"do": "lasso", "points": [[5, 5, 50], [9, 5, 50], [9, 9, 50]], "axis": 2},
        {"do": "tool", "object": "o1", "tool": "melt"},
        {"do": "tool", "object": "o1", "tool": "shrink", "mm": 50},
        {"do": "tool", "object": "o1", "tool": "grow", "axis": 0, "index": 10**30},
        {"do": "lock", "object": "o1", "axis": 0, "index": -1, "locked": True},
        {"do": "combine", "object": "o1", "other": "o1", "how": "merge"},
        {"do": "go_back", "object": "o1", "step": -1},
        {"do": "add_prompt", "prompt": {"kind": "scribble", "coordinates": [[5, 5, 5]], "positive": False}},
    ]
    for action in bad:
        answer = act(client, headers, **action)
        assert answer.status_code == 422 and answer.json()["error"].endswith("."), action
    assert unpack(act(client, headers, do="look").content)[0]["state"] == before
    steps = client.get("/medsam/api/history", headers=headers, params={"object": "o1"}).json()["steps"]
    assert [step["change"] for step in steps][-1] == "grow 1 mm on object 1" and steps[-1]["now"]
    assert client.get("/medsam/api/history", headers=headers, params={"object": "<b>"}).status_code == 422


def test_label_sets_come_with_the_server_or_from_the_page(client, headers):
    post = lambda name, body: client.post(f"/medsam/api/labels?name={name}", headers=headers, content=body)  # noqa: E731
    assert client.post("/medsam/api/session", headers=headers).json()["labels"] == []
    labels = post("a.csv", b"name,label\nliver,4\n").json()["labels"]
    assert labels == [{"name": "liver", "label": 4, "colour": "#e69f00", "may_overlap": True}]
    assert client.post("/medsam/api/session", headers=headers).json()["labels"] == labels
    for name, body in (("a.csv", b"title\n"), ("../../x.json", b"{"), ("a.csv", bytes(3 << 20))):
        answer = post(name, body)
        assert answer.status_code in (413, 422) and "/tmp" not in answer.text
    assert client.post("/medsam/api/session", headers=headers).json()["labels"] == labels


def test_saving_names_the_file_after_the_volume(client, headers):
    client.post("/medsam/api/open", headers=headers, json={"source": "folder", "path": "inner/a.nii.gz"})
    act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [9, 9, 8]})
    mask = client.get("/medsam/api/mask", headers=headers)
    assert mask.headers["content-disposition"] == "attachment; filename*=UTF-8''a_mask.nii.gz"
    image = nib.Nifti1Image.from_bytes(zlib.decompress(mask.content, 31))
    assert np.asanyarray(image.dataobj).any() and np.array_equal(image.affine, np.eye(4))
    prompts = client.get("/medsam/api/prompts", headers=headers)
    again = client.post("/medsam/api/prompts", headers=headers, content=prompts.content)
    assert len(unpack(again.content)[0]["state"]["objects"]) == 1


def test_replay_takes_the_settings_of_the_file(client, headers):
    client.post("/medsam/api/open", headers=headers, json={"source": "folder", "path": "inner/a.nii.gz"})
    act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [9, 9, 8]})
    assert unpack(act(client, headers, do="refine", on=True).content)[0]["state"]["refine"] is True
    prompts = client.get("/medsam/api/prompts", headers=headers).content
    assert unpack(act(client, headers, do="refine", on=False).content)[0]["state"]["refine"] is False
    again = client.post("/medsam/api/prompts", headers=headers, content=prompts)
    assert unpack(again.content)[0]["state"]["refine"] is True
