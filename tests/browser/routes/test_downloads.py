"""What a page saves, read back as whoever gets it would."""

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
    """A folder with a series of a bright ball, and the same as NIfTI."""
    made = tmp_path_factory.mktemp("shown")
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in (30, 28, 20)), indexing="ij"), axis=-1)
    ball = np.linalg.norm((ijk - (14, 13, 9)) * (0.8, 0.5, 2), axis=-1) < 5
    array = (1000 + 300 * ball + np.random.default_rng(0).integers(0, 30, ball.shape)).astype(np.uint16)
    write_series(made / "series", array, spacing=(0.8, 0.5), FrameOfReferenceUID="1.2.3.7")
    volume = load_volume(made / "series")
    nib.save(nib.Nifti1Image(volume.array, volume.affine), made / "a case.nii.gz")
    return made


@pytest.fixture(scope="module")
def service(folder):
    made = Service(roots=[folder], model=build_sam3d_tiny())  # untrained: good enough to have masks
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def mine(client):
    return {"X-Medsam-Session": client.post(f"{API}/session").json()["token"]}


def begin(client, mine, path: str, *, objects: int = 1) -> None:
    """Open a volume and make objects that overlap."""
    answer = client.post(f"{API}/open", headers=mine, json={"source": "folder", "path": path})
    assert answer.status_code == 200, answer.text
    for number in range(objects):
        act(client, mine, do="add_object", name=f"object {number}")
        act(client, mine, do="add_prompt", prompt={"kind": "point", "coordinates": [14, 13 + number, 9]})


def act(client, mine, **action) -> None:
    answer = client.post(f"{API}/act", headers=mine, json={"action": action, "have": []})
    assert answer.status_code == 200, answer.text


def session_of(service, mine):
    return service.workspaces.get(mine["X-Medsam-Session"]).opened.session


@pytest.mark.parametrize(("format", "ending"), [("nifti", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha")])
def test_masks_in_every_format_read_back_the_same(service, client, mine, tmp_path, format, ending):
    begin(client, mine, "a case.nii.gz")
    answer = client.get(f"{API}/mask", params={"format": format}, headers=mine)
    assert answer.headers["content-disposition"].endswith(f"a%20case_mask{ending}")
    path = tmp_path / f"m{ending}"
    path.write_bytes(answer.content)
    session = session_of(service, mine)
    found = load_mask(path, session.volume.grid)
    assert found.any() and np.array_equal(found, session.label_map())


@pytest.mark.slow
def test_a_dicom_series_gets_a_segmentation(service, client, mine, tmp_path):
    begin(client, mine, "series", objects=2)
    answer = client.get(f"{API}/mask", params={"format": "dicom-seg"}, headers=mine)
    assert answer.status_code == 200, answer.text
    path = tmp_path / "m.seg.dcm"
    path.write_bytes(answer.content)
    session = session_of(service, mine)
    found, names = read_dicom_seg(path, session.volume.grid)
    assert np.array_equal(found, session.label_map()) and names == {1: "object 0", 2: "object 1"}


def test_an_uploaded_series_still_has_its_slices(service, client, mine, folder, tmp_path):
    files = sorted((folder / "series").iterdir())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    sent = client.post(
        f"{API}/upload", params={"name": "s.zip"}, headers=mine, content=packed.getvalue()
    ).json()
    opened = client.post(f"{API}/open", headers=mine, json={"source": "upload", **sent})
    assert opened.json()["volume"]["dicom"] is True
    act(client, mine, do="add_prompt", prompt={"kind": "point", "coordinates": [14, 13, 9]})
    answer = client.get(f"{API}/mask", params={"format": "dicom-seg"}, headers=mine)
    assert answer.status_code == 200, answer.text
    (tmp_path / "m.seg.dcm").write_bytes(answer.content)
    session = session_of(service, mine)
    assert np.array_equal(read_dicom_seg(tmp_path / "m.seg.dcm", session.volume.grid)[0], session.label_map())


def test_other_images_get_a_sentence_instead(client, mine):
    begin(client, mine, "a case.nii.gz")
    for format, said in (("dicom-seg", "DICOM"), ("gif", "Known: dicom-seg, mha, nifti, nrrd")):
        answer = client.get(f"{API}/mask", params={"format": format}, headers=mine)
        assert answer.status_code == 422 and said in answer.json()["error"]


def test_a_case_holds_all_that_was_made(service, client, mine, tmp_path):
    begin(client, mine, "a case.nii.gz", objects=2)
    answer = client.post(f"{API}/case", params={"format": "nrrd"}, headers=mine, content=PNG)
    assert answer.headers["content-disposition"].endswith("a%20case.zip")
    session = session_of(service, mine)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    own = {"objects/1_object_0.nrrd", "objects/2_object_1.nrrd"}  # their masks overlap
    assert files == own | {
        "a_case_mask.nrrd", "a_case.prompts.json", "measurements.csv", "areas.csv", "screenshot.png",
        "about.json",
    }  # fmt: skip
    assert np.array_equal(load_mask(tmp_path / "a_case_mask.nrrd", session.volume.grid), session.label_map())
    for each in session.objects:
        found = load_mask(
            tmp_path / f"objects/{each.label}_object_{each.label - 1}.nrrd", session.volume.grid
        )
        assert np.array_equal(found > 0, session.prediction(each.id).mask)
    assert len(read_prompt_file(tmp_path / "a_case.prompts.json").objects) == 2
    assert (tmp_path / "screenshot.png").read_bytes() == PNG
    rows = list(csv.DictReader((tmp_path / "measurements.csv").open()))
    assert [int(row["voxels"]) for row in rows] == [session.prediction(e.id).voxels for e in session.objects]
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["model"] == {"id": session.predictor.model.model_id, "sha256": ""}
    assert about["image"]["sha256"] == session.volume.fingerprint and about["adapter"] is None
    assert set(about["files"]) == files - {"about.json"}
    for name, digest in about["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_nothing_to_save_is_a_sentence(client, mine):
    begin(client, mine, "a case.nii.gz", objects=0)
    answer = client.post(f"{API}/case", headers=mine)
    assert answer.status_code == 422 and "no mask" in answer.json()["error"]
    answer = client.post(f"{API}/case", headers=mine, content=b"<script>")
    assert answer.status_code == 422 and "PNG" in answer.json()["error"]


@pytest.mark.slow
def test_measurements_follow_the_mask(service, client, mine):
    begin(client, mine, "a case.nii.gz")
    session = session_of(service, mine)
    owner = session.objects[0].id
    for _ in range(2):
        answer = client.get(f"{API}/measurements", params={"object": owner}, headers=mine).json()
        made = answer["measurement"]
        assert made["voxels"] == session.prediction(owner).voxels and len(made["diameters"]) == 3
        act(client, mine, do="add_prompt", prompt={"kind": "point", "coordinates": [20, 13, 9]})
    table = client.get(f"{API}/measurements.csv", headers=mine)
    assert table.headers["content-disposition"].endswith("a%20case_measurements.csv")
    (row,) = csv.DictReader(io.StringIO(table.text))
    assert int(row["voxels"]) == session.prediction(owner).voxels
    areas = client.get(f"{API}/measurements.csv", params={"what": "areas"}, headers=mine).text
    axial = [float(r["area_mm2"]) for r in csv.DictReader(io.StringIO(areas)) if r["plane"] == "axial"]
    assert sum(axial) * 2 / 1000 == pytest.approx(float(row["volume_ml"]), rel=1e-4)
    nobody = client.get(f"{API}/measurements", params={"object": "nobody"}, headers=mine).json()
    assert nobody["measurement"] is None
