"""Downloads of a page, read back from the files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from medsam_app.browser.app import create_app
from medsam_app.browser.state.service import Service
from medsam_app.io.dicom.seg_writer import read_dicom_seg
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.session.prompt_file import read_prompt_file
from tests.support.dicom_files import write_series

API = "/medsam/api"
PNG = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a series of a bright ball, and the same volume as NIfTI."""
    folder = tmp_path_factory.mktemp("shown")
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in (30, 28, 20)), indexing="ij"), axis=-1)
    ball = np.linalg.norm((ijk - (14, 13, 9)) * (0.8, 0.5, 2), axis=-1) < 5
    array = (1000 + 300 * ball + np.random.default_rng(0).integers(0, 30, ball.shape)).astype(np.uint16)
    write_series(folder / "series", array, spacing=(0.8, 0.5), FrameOfReferenceUID="1.2.3.7")
    volume = load_volume(folder / "series")
    nib.save(nib.Nifti1Image(volume.array, volume.affine), folder / "a case.nii.gz")
    return folder


@pytest.fixture(scope="module")
def service(folder):
    service = Service(roots=[folder], model=build_sam3d_tiny())  # untrained: any mask will do
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def headers(client):
    return {"X-Medsam-Session": client.post(f"{API}/session").json()["token"]}


def begin(client, headers, path: str, *, objects: int = 1) -> None:
    """Open a volume and create objects that overlap."""
    answer = client.post(f"{API}/open", headers=headers, json={"source": "folder", "path": path})
    assert answer.status_code == 200, answer.text
    for number in range(objects):
        act(client, headers, do="add_object", name=f"object {number}")
        act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [14, 13 + number, 9]})


def act(client, headers, **action) -> None:
    answer = client.post(f"{API}/act", headers=headers, json={"action": action, "have": []})
    assert answer.status_code == 200, answer.text


def session_of(service, headers):
    return service.workspaces.get(headers["X-Medsam-Session"]).opened.session


@pytest.mark.parametrize(("format", "ending"), [("nifti", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha")])
def test_masks_in_every_format_read_back_the_same(service, client, headers, tmp_path, format, ending):
    begin(client, headers, "a case.nii.gz")
    answer = client.get(f"{API}/mask", params={"format": format}, headers=headers)
    assert answer.headers["content-disposition"].endswith(f"a%20case_mask{ending}")
    path = tmp_path / f"m{ending}"
    path.write_bytes(answer.content)
    session = session_of(service, headers)
    labels = load_mask(path, session.volume.grid)
    assert labels.any() and np.array_equal(labels, session.label_map())


@pytest.mark.slow
def test_a_dicom_series_gets_a_segmentation(service, client, headers, tmp_path):
    begin(client, headers, "series", objects=2)
    answer = client.get(f"{API}/mask", params={"format": "dicom-seg"}, headers=headers)
    assert answer.status_code == 200, answer.text
    path = tmp_path / "m.seg.dcm"
    path.write_bytes(answer.content)
    session = session_of(service, headers)
    labels, names = read_dicom_seg(path, session.volume.grid)
    assert np.array_equal(labels, session.label_map()) and names == {1: "object 0", 2: "object 1"}


def test_an_uploaded_series_still_has_its_slices(service, client, headers, folder, tmp_path):
    files = sorted((folder / "series").iterdir())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    sent = client.post(
        f"{API}/upload", params={"name": "s.zip"}, headers=headers, content=packed.getvalue()
    ).json()
    opened = client.post(f"{API}/open", headers=headers, json={"source": "upload", **sent})
    assert opened.json()["volume"]["dicom"] is True
    act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [14, 13, 9]})
    answer = client.get(f"{API}/mask", params={"format": "dicom-seg"}, headers=headers)
    assert answer.status_code == 200, answer.text
    (tmp_path / "m.seg.dcm").write_bytes(answer.content)
    session = session_of(service, headers)
    assert np.array_equal(read_dicom_seg(tmp_path / "m.seg.dcm", session.volume.grid)[0], session.label_map())


def test_formats_that_cannot_be_saved_are_refused(client, headers):
    begin(client, headers, "a case.nii.gz")
    for format, words in (("dicom-seg", "DICOM"), ("gif", "Known: dicom-seg, mha, nifti, nrrd")):
        answer = client.get(f"{API}/mask", params={"format": format}, headers=headers)
        assert answer.status_code == 422 and words in answer.json()["error"]


def test_a_case_contains_all_results(service, client, headers, tmp_path):
    begin(client, headers, "a case.nii.gz", objects=2)
    answer = client.post(f"{API}/case", params={"format": "nrrd"}, headers=headers, content=PNG)
    assert answer.headers["content-disposition"].endswith("a%20case.zip")
    session = session_of(service, headers)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    object_masks = {"objects/1_object_0.nrrd", "objects/2_object_1.nrrd"}  # their masks overlap
    assert files == object_masks | {
        "a_case_mask.nrrd", "a_case.prompts.json", "measurements.csv", "areas.csv", "screenshot.png",
        "about.json",
    }  # fmt: skip
    assert np.array_equal(load_mask(tmp_path / "a_case_mask.nrrd", session.volume.grid), session.label_map())
    for item in session.objects:
        labels = load_mask(
            tmp_path / f"objects/{item.label}_object_{item.label - 1}.nrrd", session.volume.grid
        )
        assert np.array_equal(labels > 0, session.prediction(item.id).mask)
    assert len(read_prompt_file(tmp_path / "a_case.prompts.json").objects) == 2
    assert (tmp_path / "screenshot.png").read_bytes() == PNG
    rows = list(csv.DictReader((tmp_path / "measurements.csv").open()))
    assert [int(row["voxels"]) for row in rows] == [session.prediction(o.id).voxels for o in session.objects]
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["model"] == {"id": session.predictor.model.model_id, "sha256": ""}
    assert about["image"]["sha256"] == session.volume.fingerprint and about["adapter"] is None
    assert set(about["files"]) == files - {"about.json"}
    for name, digest in about["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_a_case_without_masks_is_refused(client, headers):
    begin(client, headers, "a case.nii.gz", objects=0)
    answer = client.post(f"{API}/case", headers=headers)
    assert answer.status_code == 422 and "no mask" in answer.json()["error"]
    answer = client.post(f"{API}/case", headers=headers, content=b"<script>")
    assert answer.status_code == 422 and "PNG" in answer.json()["error"]


@pytest.mark.slow
def test_measurements_follow_the_mask(service, client, headers):
    begin(client, headers, "a case.nii.gz")
    session = session_of(service, headers)
    owner = session.objects[0].id
    for _ in range(2):
        answer = client.get(f"{API}/measurements", params={"object": owner}, headers=headers).json()
        measurement = answer["measurement"]
        assert measurement["voxels"] == session.prediction(owner).voxels
        assert len(measurement["diameters"]) == 3
        act(client, headers, do="add_prompt", prompt={"kind": "point", "coordinates": [20, 13, 9]})
    table = client.get(f"{API}/measurements.csv", headers=headers)
    assert table.headers["content-disposition"].endswith("a%20case_measurements.csv")
    (row,) = csv.DictReader(io.StringIO(table.text))
    assert int(row["voxels"]) == session.prediction(owner).voxels
    areas = client.get(f"{API}/measurements.csv", params={"what": "areas"}, headers=headers).text
    axial = [float(r["area_mm2"]) for r in csv.DictReader(io.StringIO(areas)) if r["plane"] == "axial"]
    assert sum(axial) * 2 / 1000 == pytest.approx(float(row["volume_ml"]), rel=1e-4)
    missing = client.get(f"{API}/measurements", params={"object": "nobody"}, headers=headers).json()
    assert missing["measurement"] is None
