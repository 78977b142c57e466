"""Routes of worklists: clicks are stored at once, and no user's work is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from medsam_app.browser.app import create_app
from medsam_app.browser.state.service import Service
from medsam_app.worklist.store import DATABASE
from tests.support.closed_folder import close

HOME = "http://127.0.0.1"
API = "/medsam/api"
ROOT = Path(__file__).parents[3]
ODD = "sub/<b>odd & 'name'</b>"
CASES = ["a", "b", ODD]


def make_folder(folder: Path) -> Path:
    """Write three volumes with a bright ball in the middle; return the folder."""
    grid = np.indices((24, 22, 20)).transpose(1, 2, 3, 0)
    ball = np.linalg.norm(grid - (12, 11, 10), axis=-1) < 6
    noise = np.random.default_rng(0)
    for name in CASES:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = (100 * ball + noise.normal(0, 5, ball.shape)).astype("f4")
        nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 1.5, 1])), path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "shown" / "data").parent


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    service = Service(roots=[folder])
    yield service
    service.close()


class User:
    """Page of a user."""

    def __init__(self, client: httpx.Client, who: str = "ada") -> None:
        self.client = client
        token = client.post(f"{API}/session").json()["token"]
        self.headers = {"X-Medsam-Session": token, "X-Medsam-Who": who}
        self.masks: dict[str, bytes] = {}

    def post(self, route: str, **body: object) -> httpx.Response:
        return self.client.post(f"{API}/{route}", headers=self.headers, json=body)

    def list(self, **query: object) -> dict:
        answer = self.client.post(
            f"{API}/worklist", headers=self.headers, json={"root": 0, "path": "data"}, params=query
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def row(self, name: str) -> dict:
        return next(case for case in self.list()["cases"] if case["name"] == name)

    def open(self, name: str) -> dict:
        answer = self.post("worklist/case", root=0, path="data", name=name)
        assert answer.status_code == 200, answer.text
        return self.act(do="look")

    def act(self, **action: object) -> dict:
        answer = self.post("act", action=action, have=[])
        assert answer.status_code == 200, answer.text
        length = int.from_bytes(answer.content[:4], "little")
        header = json.loads(answer.content[4 : 4 + length])
        self.bits = answer.content[4 + length :]
        return header

    def click(self, *ijk: int, positive: bool = True) -> dict:
        prompt = {"kind": "point", "coordinates": ijk, "positive": positive}
        return self.act(do="add_prompt", prompt=prompt)

    def set_state(self, name: str, state: str, **options: object) -> httpx.Response:
        version = self.row(name)["version"]
        body = {"root": 0, "path": "data", "name": name, "state": state, "version": version}
        return self.post("worklist/state", **(body | options))


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(create_app(service), base_url=HOME)


@pytest.mark.slow
def test_a_click_is_stored_and_another_user_sees_it(client: TestClient, folder: Path) -> None:
    ada, bob = User(client), User(client, "bob%20%C3%A9")
    assert [(case["name"], case["state"]) for case in ada.list()["cases"]] == [(n, "new") for n in CASES]
    stamp = bob.list()["stamp"]
    assert bob.list(stamp=stamp) == {"stamp": stamp}
    assert ada.open(ODD)["state"]["objects"] == []
    answer = ada.click(12, 11, 10)
    assert answer["state"]["case"] == {"name": ODD, "version": 1, "problem": "", "conflict": False}
    row = ada.row(ODD)
    assert (row["state"], row["who"], row["version"]) == ("in progress", "ada", 1)
    assert bob.list(stamp=stamp)["stamp"] != stamp
    # Requesting the state and selecting do not change the work.
    ada.act(do="look")
    ada.act(do="select", object=answer["state"]["selected"])
    assert ada.row(ODD)["version"] == 1

    opened = bob.open(ODD)
    assert opened["state"]["objects"][0]["prompts"] == answer["state"]["objects"][0]["prompts"]
    assert not opened["state"]["can_undo"]
    ada.act(do="look")
    assert bob.bits == ada.bits and len(ada.bits) > 100
    bob.click(2, 2, 2, positive=False)
    assert bob.row(ODD)["who"] == "bob é"
    # Undo changes the work too.
    bob.act(do="undo")
    assert bob.row(ODD)["version"] == 3


def test_unreadable_entries_do_not_block_a_folder(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(b"bild_\xfc")
    for name in (f"{odd}.nii.gz", f"slices/{odd}.dcm", "closed/c.nii.gz"):
        (folder / "data" / name).parent.mkdir(exist_ok=True)
        (folder / "data" / name).write_bytes(b"\0" * 128 + b"DICM")
    close(monkeypatch, folder / "data/closed")
    ada = User(client)
    rows = ada.list()
    assert [case["name"] for case in rows["cases"]] == [*CASES[:2], "slices", ODD]
    assert (rows["unread"], rows["left_out"]) == (2, 0)
    answer = ada.post("worklist/case", root=0, path="data", name="slices")
    assert answer.status_code == 422 and r"'bild_\udcfc.dcm' cannot be opened" in answer.json()["error"]
    close(monkeypatch, folder / "only" / odd)
    (folder / "only" / odd).mkdir(parents=True)
    answer = ada.post("worklist", root=0, path="only")
    assert answer.status_code == 422 and r"'bild_\udcfc' cannot be looked at" in answer.json()["error"]


@pytest.mark.slow
def test_the_second_of_two_users_sees_the_conflict_and_chooses(client: TestClient) -> None:
    ada, bob = User(client), User(client, "bob")
    ada.open("a")
    bob.open("a")
    ada.click(12, 11, 10)
    case = bob.click(12, 11, 12)["state"]["case"]
    assert case["conflict"] and "'a' was changed by ada" in case["problem"]
    assert bob.set_state("a", "accepted").status_code == 422
    assert bob.row("a")["version"] == 1
    # Bob keeps his work as a newer version; Ada then sees a conflict and loads his work.
    assert bob.post("worklist/resolve", keep="mine").status_code == 200
    assert bob.act(do="look")["state"]["case"] == {
        "name": "a",
        "version": 2,
        "problem": "",
        "conflict": False,
    }
    assert ada.click(2, 2, 2, positive=False)["state"]["case"]["conflict"]
    assert ada.post("worklist/resolve", keep="theirs").status_code == 200
    state = ada.act(do="look")["state"]
    assert state["case"]["version"] == 2 and not state["case"]["conflict"]
    assert [p["coordinates"] for p in state["objects"][0]["prompts"]] == [[12, 11, 12]]


@pytest.mark.slow
def test_an_older_version_is_not_accepted_without_changes(client: TestClient, folder: Path) -> None:
    ada, bob = User(client), User(client, "bob")
    ada.open("a")
    ada.click(12, 11, 10)
    bob.open("a")
    ada.click(2, 2, 2, positive=False)
    assert ada.set_state("a", "accepted").status_code == 200
    prompts = folder / "data/masks/a.prompts.json"
    written = prompts.read_bytes()
    refused = bob.set_state("a", "accepted", version=1)
    assert refused.status_code == 422 and "changed by ada" in refused.json()["error"]
    assert prompts.read_bytes() == written and bob.row("a")["state"] == "accepted"
    # Bob sees the conflict at once and keeps his work.
    assert bob.act(do="look")["state"]["case"]["conflict"]
    assert bob.post("worklist/resolve", keep="mine").status_code == 200
    assert bob.row("a")["version"] == 3 and len(bob.act(do="look")["state"]["objects"][0]["prompts"]) == 1


def test_an_existing_mask_is_not_overwritten(client: TestClient, folder: Path) -> None:
    ada, truth = User(client), folder / "data/masks/a_mask.nii.gz"
    truth.parent.mkdir()
    truth.write_bytes(b"somebody's own")
    ada.open("a")
    ada.click(12, 11, 10)
    refused = ada.set_state("a", "accepted")
    assert refused.status_code == 422 and "was not written by this worklist" in refused.json()["error"]
    assert truth.read_bytes() == b"somebody's own"
    truth.unlink()
    assert ada.set_state("a", "accepted").status_code == 200 and truth.stat().st_size > 100


@pytest.mark.slow
def test_requests_for_another_volume_are_refused(client: TestClient) -> None:
    """Pages send the number of the volume that they show; scripts need not."""
    ada = User(client)
    first = ada.post("worklist/case", root=0, path="data", name="a").json()["volume"]["opened"]
    second = ada.post("worklist/case", root=0, path="data", name="b").json()["volume"]["opened"]
    prompt = {"kind": "point", "coordinates": [12, 11, 10], "positive": True}
    body = {"action": {"do": "add_prompt", "prompt": prompt}, "have": []}
    for opened, status in ((first, 409), (second, 200), (None, 200)):
        headers = ada.headers | ({} if opened is None else {"X-Medsam-Volume": str(opened)})
        assert client.post(f"{API}/act", json=body, headers=headers).status_code == status
        saved = client.get(f"{API}/prompts", headers=headers)
        assert saved.status_code == status
    assert len(ada.act(do="look")["state"]["objects"][0]["prompts"]) == 2
    assert ada.row("a")["state"] == "new"


@pytest.mark.slow
def test_accepting_writes_the_mask_its_prompts_and_the_model(
    client: TestClient, folder: Path, service: Service
) -> None:
    ada = User(client)
    ada.open(ODD)
    refused = ada.set_state(ODD, "accepted")
    assert refused.status_code == 422 and "nothing in this case" in refused.json()["error"]
    ada.click(12, 11, 10)
    assert ada.set_state("a", "accepted").status_code == 422  # not the open case
    answer = ada.set_state(ODD, "accepted")
    assert answer.status_code == 200 and answer.json()["counts"]["accepted"] == 1
    mask = folder / "data/masks" / f"{ODD}_mask.nii.gz"
    prompts = mask.with_name(mask.name.replace("_mask.nii.gz", ".prompts.json"))
    saved = np.asanyarray(nib.load(mask).dataobj)
    assert saved[12, 11, 10] == 1 and 200 < saved.sum() < 2000
    model = json.loads(prompts.read_text())["model"]
    worklist = service.worklists.get(0, "data")
    made_by = json.loads(worklist.works(ODD)[0].made_by)
    assert made_by["model"] == model["id"] == "sam3d_tiny" and made_by["model_sha256"] == model["sha256"]
    assert any(model["sha256"] in event.what for event in worklist.events(ODD))
    # Masks are not cases, nor are they in a worklist of the parent folder.
    assert len(ada.list(refresh=True)["cases"]) == 3
    above = ada.post("worklist", root=0, path="").json()
    assert [case["name"] for case in above["cases"]] == [f"data/{name}" for name in CASES]
    # Another click reopens the case; the files stay until it is accepted again.
    ada.click(2, 2, 2, positive=False)
    assert ada.row(ODD)["state"] == "in progress" and mask.exists()
    assert ada.set_state("b", "accepted", version=7).status_code == 422
    assert ada.set_state("b", "skipped").json()["counts"]["skipped"] == 1
    assert ada.set_state("b", "skipped", version=7).status_code == 422
    ada.open("b")
    assert ada.set_state("b", "accepted", empty=True).status_code == 200
    assert not np.asanyarray(nib.load(folder / "data/masks/b_mask.nii.gz").dataobj).any()


def test_bad_folders_are_refused(client: TestClient, folder: Path, service: Service) -> None:
    ada = User(client)
    (folder / "empty").mkdir()
    for path in ("../..", "empty", "data/a.nii.gz", "nowhere"):
        answer = ada.post("worklist", root=0, path=path)
        assert answer.status_code == 422 and answer.json()["error"].endswith("."), path
    assert not (folder / "empty" / DATABASE).exists()
    assert ada.post("worklist", root=3, path="").status_code == 422
    # A manipulated database does not lead to other files.
    worklist = service.worklists.get(0, "data")
    secret = make_folder(folder.parent / "secret") / "a.nii.gz"
    worklist._connection.execute(
        "INSERT INTO cases (name, path) VALUES ('../../x', ?)", (f"../../{secret.parent.name}/a.nii.gz",)
    )
    answer = ada.post("worklist/case", root=0, path="data", name="../../x")
    assert answer.status_code == 422 and "not in the folders" in answer.json()["error"]
    worklist._connection.execute("UPDATE cases SET path = 'a.nii.gz' WHERE name = '../../x'")
    ada.open("../../x")
    assert ada.set_state("../../x", "accepted", empty=True).status_code == 422
    assert not (folder / "x_mask.nii.gz").exists()


@pytest.mark.slow
def test_a_case_of_several_frames_offers_all_of_them(client: TestClient, folder: Path) -> None:
    still = nib.load(folder / "data" / f"{CASES[0]}.nii.gz")
    frames = np.stack([np.asanyarray(still.dataobj)] * 3, axis=-1) + np.arange(3, dtype="f4")
    nib.save(nib.Nifti1Image(frames, still.affine), folder / "data" / "moving.nii.gz")
    ada = User(client)
    ada.list(refresh=True)
    refused = ada.post("worklist/case", root=0, path="data", name="moving")
    assert refused.status_code == 422 and refused.json()["choice"]["option"] == "frame"
    chosen = ada.post("worklist/case", root=0, path="data", name="moving", frame=1).json()["volume"]
    assert chosen["source"]["frame"] == 1 and len(chosen["parts"]["frame"]) == 3
    ada.click(12, 11, 10)

    # The next user need not choose, and can see the other frames too.
    bob = User(client, "bob")
    again = bob.post("worklist/case", root=0, path="data", name="moving").json()["volume"]
    assert again["source"]["frame"] == 1 and len(again["parts"]["frame"]) == 3
    assert len(bob.act(do="look")["state"]["objects"]) == 1
    third_frame = bob.client.get(f"{API}/frame", params={"number": 2}, headers=bob.headers)
    assert (
        np.frombuffer(third_frame.content, third_frame.headers["x-medsam-dtype"]).max()
        == frames[..., 2].max()
    )

    # Another frame starts without that work, which is kept until the next change.
    moved = bob.post("worklist/case", root=0, path="data", name="moving", frame=2).json()["volume"]
    assert moved["source"]["frame"] == 2
    answer = bob.act(do="look")
    assert answer["state"]["objects"] == [] and "kept" in answer["messages"][0]
    assert ada.row("moving")["version"] == 1
    bob.click(12, 11, 10)
    opened = ada.post("worklist/case", root=0, path="data", name="moving").json()["volume"]
    assert opened["source"]["frame"] == 2


@pytest.mark.slow
def test_work_that_no_longer_fits_is_kept_with_a_message(
    client: TestClient, folder: Path, service: Service
) -> None:
    ada = User(client)
    ada.open("a")
    ada.click(12, 11, 10)
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), "f4") + np.arange(9), np.eye(4)), folder / "data/a.nii.gz")
    opened = ada.open("a")
    assert opened["state"]["objects"] == []
    assert any("kept but cannot be opened" in message for message in opened["messages"])
    ada.click(4, 4, 4)
    assert [work.version for work in service.worklists.get(0, "data").works("a")] == [2, 1]


def test_the_worklist_of_read_only_data_is_in_another_folder(folder: Path, tmp_path: Path) -> None:
    worklists = tmp_path / "kept"
    worklists.mkdir()
    service = Service(roots=[folder], worklist=worklists)
    before = sorted(folder.rglob("*"))
    ada = User(TestClient(create_app(service), base_url=HOME))
    ada.open("a")
    ada.click(12, 11, 10)
    assert ada.set_state("a", "accepted").status_code == 200
    assert sorted(folder.rglob("*")) == before
    assert (worklists / "shown/data" / DATABASE).is_file() and (
        worklists / "shown/data/masks/a_mask.nii.gz"
    ).is_file()
    service.close()


def test_the_name_is_that_of_the_login(folder: Path) -> None:
    service = Service(roots=[folder])
    app = create_app(service, auth=[("carl", "s3cret")])
    client = TestClient(app, base_url=HOME)
    client.auth = ("carl", "s3cret")
    carl = User(client, "somebody else")
    carl.open("a")
    carl.click(12, 11, 10)
    assert carl.row("a")["who"] == "carl"
    service.close()
