"""Surfaces, comparisons and frames in the server's responses."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from medsam_app.browser.app import create_app
from medsam_app.browser.routes import compare as compare_module
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
    """A folder with a file of three frames, a file of one of them, and two series."""
    folder, rng = tmp_path_factory.mktemp("shown"), np.random.default_rng(0)
    frames = rng.integers(-50, 50, (24, 22, 16, 3)).astype(np.int16)
    frames[6:18, 6:16, 4:12] += 400
    nib.save(nib.Nifti1Image(frames, AFFINE), folder / "frames.nii.gz")
    nib.save(nib.Nifti1Image(frames[..., 0], AFFINE), folder / "one.nii.gz")
    write_series(folder / "study", frames[..., 0].astype(np.uint16), series="1.2.3.4")
    write_series(folder / "study", frames[:, :, :9, 1].astype(np.uint16), series="1.2.3.5", first=50)
    return folder


@pytest.fixture(scope="module")
def service(folder):
    service = Service(roots=[folder], model=build_sam3d_tiny())
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def headers(client):
    return {"X-Medsam-Session": client.post(f"{API}/session").json()["token"]}


def compare(client, headers, **body):
    return client.post(f"{API}/compare", headers=headers, json=body)


def from_folder(path: str) -> dict:
    return {"source": "folder", "path": path}


@pytest.mark.slow
def test_a_surface_arrives_unchanged(service, client, headers):
    begin(client, headers, "one.nii.gz")
    session = session_of(service, headers)
    owner = session.objects[0].id
    body = client.get(f"{API}/surface", params={"object": owner}, headers=headers).content
    length = int.from_bytes(body[:4], "little")
    header = json.loads(body[4 : 4 + length])
    vertices = np.frombuffer(body, "<f4", 3 * header["vertices"], 4 + length).reshape(-1, 3)
    triangles = np.frombuffer(body, "<u4", offset=4 + length + vertices.nbytes).reshape(-1, 3)
    prediction = session.prediction(owner)
    expected = surface_of(prediction.patch, session.volume.grid)
    assert np.array_equal(vertices, expected.vertices) and np.array_equal(triangles, expected.triangles)
    state = unpack(client.post(f"{API}/act", headers=headers, json={"action": {"do": "look"}}).content)[0][
        "state"
    ]
    assert header["key"] == state["objects"][0]["mask"]
    act(client, headers, do="add_object")
    missing = client.get(f"{API}/surface", params={"object": "o2"}, headers=headers)
    assert missing.status_code == 422 and "no mask yet" in missing.json()["error"]


@pytest.mark.slow
def test_objects_are_compared_with_the_labels_of_a_file(service, client, headers, folder):
    begin(client, headers, "one.nii.gz", objects=2)
    session = session_of(service, headers)
    other = np.zeros(session.volume.shape, np.int16)
    other[6:18, 6:16, 4:12] = 2
    other[0:3, 0:3, 0:2] = 900
    nib.save(nib.Nifti1Image(other, AFFINE), folder / "other.nii.gz")
    answer = compare(client, headers, other=from_folder("other.nii.gz"), tolerance_mm=2)
    assert answer.status_code == 200, answer.text
    body, masks = unpack(answer.content)
    assert [(row["object"] is not None, row["label"]) for row in body["rows"]] == [
        (True, None), (True, 2), (False, 900)
    ]  # fmt: skip
    row = body["rows"][1]
    ours = session.prediction(session.objects[1].id).mask
    distances = surface_distances(ours, other == 2, spacing=session.volume.spacing, tolerance=2)
    assert row["dice"] == pytest.approx(dice(ours, other == 2))
    assert (row["surface_dice"], row["hd95_mm"]) == pytest.approx((distances.surface_dice, distances.hd95))
    assert row["theirs_ml"] == pytest.approx((other == 2).sum() * session.volume.grid.voxel_volume_ml)
    assert body["rows"][0]["dice"] is None and body["rows"][2]["ours_ml"] is None
    assert [int(mask.sum()) for mask in masks] == [(other == 2).sum(), (other == 900).sum()]
    # Again after a click: cached masks are not sent, and the file need not be uploaded again.
    keys = [part["key"] for part in body["masks"]]
    act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [8, 8, 6]})
    again, masks = unpack(compare(client, headers, have=keys).content)
    assert masks == [] and again["rows"][1]["ours_ml"] != row["ours_ml"]
    assert again["tolerance_mm"] == 2.5  # the largest side of a voxel
    assert client.delete(f"{API}/compare", headers=headers).status_code == 200
    assert "choose a file" in compare(client, headers).json()["error"]


def test_a_file_of_one_label_is_compared_with_the_selected_object(service, client, headers, folder):
    begin(client, headers, "one.nii.gz", objects=2)
    session = session_of(service, headers)
    first = session.objects[0].id
    act(client, headers, do="select", object=first)
    same = session.prediction(first).mask.astype(np.uint8) * 255
    nib.save(nib.Nifti1Image(same, AFFINE), folder / "same.nii.gz")
    sent = client.post(f"{API}/upload", params={"name": "same.nii.gz"}, headers=headers,
                       content=(folder / "same.nii.gz").read_bytes()).json()  # fmt: skip
    body, _ = unpack(compare(client, headers, other={"source": "upload", **sent}).content)
    assert [row["label"] for row in body["rows"]] == [255, None]
    assert (body["rows"][0]["dice"], body["rows"][0]["surface_dice"], body["rows"][0]["hd95_mm"]) == (1, 1, 0)
    assert service.workspaces.get(headers["X-Medsam-Session"]).files.uploads == {}


def test_files_that_cannot_be_compared_are_refused(client, headers, folder):
    begin(client, headers, "one.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((24, 22, 16), np.uint8), np.eye(4)), folder / "away.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((24, 22, 16), np.uint8), AFFINE), folder / "empty.nii.gz")
    for path, words in (
        ("away.nii.gz", "does not lie on the grid"),
        ("empty.nii.gz", "no label but 0"),
        ("one.nii.gz", "negative"),
        ("study", "is DICOM"),
        ("../x", "not in the folders"),
    ):
        answer = compare(client, headers, other=from_folder(path))
        assert answer.status_code == 422 and words in answer.json()["error"], path
    assert compare(client, headers, tolerance_mm=-1).status_code == 422


def test_frames_of_a_file_arrive_one_by_one(client, headers, folder):
    refused = client.post(f"{API}/open", headers=headers, json=from_folder("frames.nii.gz"))
    assert refused.json()["choice"]["option"] == "frame"
    opened = client.post(f"{API}/open", headers=headers, json=from_folder("frames.nii.gz") | {"frame": 1})
    header = opened.json()["volume"]
    assert len(header["parts"]["frame"]) == 3 and header["source"]["frame"] == 1
    array = np.asanyarray(nib.load(folder / "frames.nii.gz").dataobj)
    for number in range(3):
        answer = client.get(f"{API}/frame", params={"number": number}, headers=headers)
        shown = np.frombuffer(answer.content, answer.headers["x-medsam-dtype"])
        # Axes closest to RAS: x runs against j, y along i, z against k.
        expected = array[..., number].transpose(1, 0, 2)[::-1, :, ::-1]
        assert np.array_equal(shown.reshape(header["shape"], order="F"), expected)
    beyond = client.get(f"{API}/frame", params={"number": 3}, headers=headers)
    assert beyond.status_code == 422 and "no frame 3" in beyond.json()["error"]


def test_frames_and_masks_count_as_readers(service, client, headers, folder, monkeypatch):
    """Frames and masks to compare with are read under the same limit as volumes."""
    begin(client, headers, "one.nii.gz")
    free: dict[str, int] = {}

    def counted(read):
        def count_free_readers(*args, **options):
            count = 0
            while service.readers.acquire(blocking=False):
                count += 1
            if count:
                service.readers.release(count)
            free[read.__name__] = count
            return read(*args, **options)

        return count_free_readers

    monkeypatch.setattr(service_module, "load_volume", counted(load_volume))
    monkeypatch.setattr(compare_module, "load_mask", counted(load_mask))
    assert client.get(f"{API}/frame", params={"number": 0}, headers=headers).status_code == 200
    nib.save(nib.Nifti1Image(np.ones((24, 22, 16), np.uint8), AFFINE), folder / "whole.nii.gz")
    assert compare(client, headers, other=from_folder("whole.nii.gz")).status_code == 200
    assert free == {"load_volume": READERS - 1, "load_mask": READERS - 1}
    # A failed read releases its reader.
    assert compare(client, headers, other=from_folder("study")).status_code == 422
    assert client.get(f"{API}/frame", params={"number": 7}, headers=headers).status_code == 422
    assert service.readers.acquire(blocking=False) and service.readers.acquire(blocking=False)
    service.readers.release(READERS)


def test_series_that_are_described_in_latin_1(client, headers, folder):
    """European scanners use Latin-1, whose bytes are not valid in JSON."""
    for number, text in (1, "Schädel"), (2, "Knöchel"):
        array = np.arange(8 * 9 * 4, dtype=np.uint16).reshape(8, 9, 4)
        tags = {"SpecificCharacterSet": "ISO_IR 100", "SeriesDescription": text}
        write_series(folder / "latin", array, series=f"1.2.{number}", first=10 * number, **tags)
    refused = client.post(f"{API}/open", headers=headers, json=from_folder("latin"))
    assert refused.status_code == 422, refused.text
    choices = refused.json()["choice"]["choices"]
    assert [text for _, text in choices] == [
        "1: CT, Schädel, 4 slices of 8 x 9", "2: CT, Knöchel, 4 slices of 8 x 9"
    ]  # fmt: skip
    opened = client.post(f"{API}/open", headers=headers, json=from_folder("latin") | {"series": "1.2.2"})
    assert opened.json()["volume"]["parts"]["series"] == choices


def test_another_series_of_the_same_source(client, headers):
    choice = client.post(f"{API}/open", headers=headers, json=from_folder("study")).json()["choice"]
    assert [text for _, text in choice["choices"]] == [
        "1: CT, made for a test, 16 slices of 24 x 22", "2: CT, made for a test, 9 slices of 24 x 22"
    ]  # fmt: skip
    for value, slices in (("1.2.3.5", 9), ("1.2.3.4", 16)):
        header = client.post(
            f"{API}/open", headers=headers, json=from_folder("study") | {"series": value}
        ).json()["volume"]
        assert header["file_shape"][2] == slices and header["parts"]["series"] == choice["choices"]
    # Another source has other choices.
    header = client.post(f"{API}/open", headers=headers, json=from_folder("one.nii.gz")).json()["volume"]
    assert header["parts"] == {}
