"""Surfaces, comparisons and frames as the server sends them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from medsam_app.browser.app import create_app
from medsam_app.browser.routes import compare as comparing
from medsam_app.browser.state import service as service_module
from medsam_app.browser.state.service import READERS, Service
from medsam_app.grid.masks import dice
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.measure.surface_distances import surface_distances
from medsam_app.measure.surface_mesh import surface_of
from medsam_app.models.sam3d import build_sam3d_tiny
from tests.browser.routes.test_downloads import API, act, begin, session_of
from tests.browser.test_app import unpack
from tests.support.dicom_files import write_series

AFFINE = np.array([[0, -1.5, 0, 9], [1.2, 0, 0, 8], [0, 0, -2.5, 7], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A file of three frames, one of them alone, and two series."""
    made, rng = tmp_path_factory.mktemp("shown"), np.random.default_rng(0)
    frames = rng.integers(-50, 50, (24, 22, 16, 3)).astype(np.int16)
    frames[6:18, 6:16, 4:12] += 400
    nib.save(nib.Nifti1Image(frames, AFFINE), made / "frames.nii.gz")
    nib.save(nib.Nifti1Image(frames[..., 0], AFFINE), made / "one.nii.gz")
    write_series(made / "study", frames[..., 0].astype(np.uint16), series="1.2.3.4")
    write_series(made / "study", frames[:, :, :9, 1].astype(np.uint16), series="1.2.3.5", first=50)
    return made


@pytest.fixture(scope="module")
def service(folder):
    made = Service(roots=[folder], model=build_sam3d_tiny())
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def mine(client):
    return {"X-Medsam-Session": client.post(f"{API}/session").json()["token"]}


def compare(client, mine, **asked):
    return client.post(f"{API}/compare", headers=mine, json=asked)


def from_folder(path: str) -> dict:
    return {"source": "folder", "path": path}


@pytest.mark.slow
def test_a_surface_arrives_as_it_was_made(service, client, mine):
    begin(client, mine, "one.nii.gz")
    session = session_of(service, mine)
    owner = session.objects[0].id
    body = client.get(f"{API}/surface", params={"object": owner}, headers=mine).content
    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    vertices = np.frombuffer(body, "<f4", 3 * header["vertices"], 4 + length).reshape(-1, 3)
    triangles = np.frombuffer(body, "<u4", offset=4 + length + vertices.nbytes).reshape(-1, 3)
    made = session.prediction(owner)
    expected = surface_of(made.patch, session.volume.grid)
    assert np.array_equal(vertices, expected.vertices) and np.array_equal(triangles, expected.triangles)
    state = unpack(client.post(f"{API}/act", headers=mine, json={"action": {"do": "look"}}).content)[0][
        "state"
    ]
    assert header["key"] == state["objects"][0]["mask"]
    act(client, mine, do="add_object")
    missing = client.get(f"{API}/surface", params={"object": "o2"}, headers=mine)
    assert missing.status_code == 422 and "no mask yet" in missing.json()["error"]


@pytest.mark.slow
def test_objects_are_compared_with_the_labels_of_a_file(service, client, mine, folder):
    begin(client, mine, "one.nii.gz", objects=2)
    session = session_of(service, mine)
    other = np.zeros(session.volume.shape, np.int16)
    other[6:18, 6:16, 4:12] = 2
    other[0:3, 0:3, 0:2] = 900
    nib.save(nib.Nifti1Image(other, AFFINE), folder / "other.nii.gz")
    answer = compare(client, mine, other=from_folder("other.nii.gz"), tolerance_mm=2)
    assert answer.status_code == 200, answer.text
    body, masks = unpack(answer.content)
    assert [(row["object"] is not None, row["label"]) for row in body["rows"]] == [
        (True, None), (True, 2), (False, 900)
    ]  # fmt: skip
    row = body["rows"][1]
    ours = session.prediction(session.objects[1].id).mask
    found = surface_distances(ours, other == 2, spacing=session.volume.spacing, tolerance=2)
    assert row["dice"] == pytest.approx(dice(ours, other == 2))
    assert (row["surface_dice"], row["hd95_mm"]) == pytest.approx((found.surface_dice, found.hd95))
    assert row["theirs_ml"] == pytest.approx((other == 2).sum() * session.volume.grid.voxel_volume_ml)
    assert body["rows"][0]["dice"] is None and body["rows"][2]["ours_ml"] is None
    assert [int(mask.sum()) for mask in masks] == [(other == 2).sum(), (other == 900).sum()]
    # Again, after a click: what the page holds is not sent, and the file need not be.
    keys = [part["key"] for part in body["masks"]]
    act(client, mine, do="add_prompt", prompt={"kind": "point", "coordinates": [8, 8, 6]})
    again, masks = unpack(compare(client, mine, have=keys).content)
    assert masks == [] and again["rows"][1]["ours_ml"] != row["ours_ml"]
    assert again["tolerance_mm"] == 2.5  # the largest side of a voxel
    assert client.delete(f"{API}/compare", headers=mine).status_code == 200
    assert "choose a file" in compare(client, mine).json()["error"]


def test_a_file_of_one_label_is_compared_with_the_selected_object(service, client, mine, folder):
    begin(client, mine, "one.nii.gz", objects=2)
    session = session_of(service, mine)
    first = session.objects[0].id
    act(client, mine, do="select", object=first)
    same = session.prediction(first).mask.astype(np.uint8) * 255
    nib.save(nib.Nifti1Image(same, AFFINE), folder / "same.nii.gz")
    sent = client.post(f"{API}/upload", params={"name": "same.nii.gz"}, headers=mine,
                       content=(folder / "same.nii.gz").read_bytes()).json()  # fmt: skip
    body, _ = unpack(compare(client, mine, other={"source": "upload", **sent}).content)
    assert [row["label"] for row in body["rows"]] == [255, None]
    assert (body["rows"][0]["dice"], body["rows"][0]["surface_dice"], body["rows"][0]["hd95_mm"]) == (1, 1, 0)
    assert service.workspaces.get(mine["X-Medsam-Session"]).files.uploads == {}


def test_what_cannot_be_compared_is_a_sentence(client, mine, folder):
    begin(client, mine, "one.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((24, 22, 16), np.uint8), np.eye(4)), folder / "away.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((24, 22, 16), np.uint8), AFFINE), folder / "empty.nii.gz")
    for path, said in (
        ("away.nii.gz", "does not lie on the grid"),
        ("empty.nii.gz", "no label but 0"),
        ("one.nii.gz", "negative"),
        ("study", "is DICOM"),
        ("../x", "not in the folders"),
    ):
        answer = compare(client, mine, other=from_folder(path))
        assert answer.status_code == 422 and said in answer.json()["error"], path
    assert compare(client, mine, tolerance_mm=-1).status_code == 422


def test_frames_of_a_file_arrive_one_by_one(client, mine, folder):
    asked = client.post(f"{API}/open", headers=mine, json=from_folder("frames.nii.gz"))
    assert asked.json()["choice"]["option"] == "frame"
    opened = client.post(f"{API}/open", headers=mine, json=from_folder("frames.nii.gz") | {"frame": 1})
    header = opened.json()["volume"]
    assert len(header["parts"]["frame"]) == 3 and header["source"]["frame"] == 1
    array = np.asanyarray(nib.load(folder / "frames.nii.gz").dataobj)
    for number in range(3):
        answer = client.get(f"{API}/frame", params={"number": number}, headers=mine)
        shown = np.frombuffer(answer.content, answer.headers["x-medsam-dtype"])
        # Closest RAS by hand: x runs against j, y along i, z against k.
        expected = array[..., number].transpose(1, 0, 2)[::-1, :, ::-1]
        assert np.array_equal(shown.reshape(header["shape"], order="F"), expected)
    beyond = client.get(f"{API}/frame", params={"number": 3}, headers=mine)
    assert beyond.status_code == 422 and "no frame 3" in beyond.json()["error"]


def test_what_is_looked_at_is_read_in_turn(service, client, mine, folder, monkeypatch):
    """As what is opened: no more at a time than the server reads."""
    begin(client, mine, "one.nii.gz")
    free: dict[str, int] = {}

    def counted(read):
        def counting(*args, **options):
            taken = 0
            while service.readers.acquire(blocking=False):
                taken += 1
            if taken:
                service.readers.release(taken)
            free[read.__name__] = taken
            return read(*args, **options)

        return counting

    monkeypatch.setattr(service_module, "load_volume", counted(load_volume))
    monkeypatch.setattr(comparing, "load_mask", counted(load_mask))
    assert client.get(f"{API}/frame", params={"number": 0}, headers=mine).status_code == 200
    nib.save(nib.Nifti1Image(np.ones((24, 22, 16), np.uint8), AFFINE), folder / "whole.nii.gz")
    assert compare(client, mine, other=from_folder("whole.nii.gz")).status_code == 200
    assert free == {"load_volume": READERS - 1, "load_mask": READERS - 1}
    # What cannot be read keeps no place.
    assert compare(client, mine, other=from_folder("study")).status_code == 422
    assert client.get(f"{API}/frame", params={"number": 7}, headers=mine).status_code == 422
    assert service.readers.acquire(blocking=False) and service.readers.acquire(blocking=False)
    service.readers.release(READERS)


def test_series_that_are_described_in_latin_1(client, mine, folder):
    """As scanners of Europe do; JSON holds no such bytes."""
    for number, text in (1, "Schädel"), (2, "Knöchel"):
        array = np.arange(8 * 9 * 4, dtype=np.uint16).reshape(8, 9, 4)
        said = {"SpecificCharacterSet": "ISO_IR 100", "SeriesDescription": text}
        write_series(folder / "latin", array, series=f"1.2.{number}", first=10 * number, **said)
    asked = client.post(f"{API}/open", headers=mine, json=from_folder("latin"))
    assert asked.status_code == 422, asked.text
    choices = asked.json()["choice"]["choices"]
    assert [text for _, text in choices] == [
        "1: CT, Schädel, 4 slices of 8 x 9", "2: CT, Knöchel, 4 slices of 8 x 9"
    ]  # fmt: skip
    opened = client.post(f"{API}/open", headers=mine, json=from_folder("latin") | {"series": "1.2.2"})
    assert opened.json()["volume"]["parts"]["series"] == choices


def test_another_series_of_the_same_source(client, mine):
    asked = client.post(f"{API}/open", headers=mine, json=from_folder("study")).json()["choice"]
    assert [text for _, text in asked["choices"]] == [
        "1: CT, made for a test, 16 slices of 24 x 22", "2: CT, made for a test, 9 slices of 24 x 22"
    ]  # fmt: skip
    for value, slices in (("1.2.3.5", 9), ("1.2.3.4", 16)):
        header = client.post(
            f"{API}/open", headers=mine, json=from_folder("study") | {"series": value}
        ).json()["volume"]
        assert header["file_shape"][2] == slices and header["parts"]["series"] == asked["choices"]
    # Another source has choices of its own.
    header = client.post(f"{API}/open", headers=mine, json=from_folder("one.nii.gz")).json()["volume"]
    assert header["parts"] == {}
