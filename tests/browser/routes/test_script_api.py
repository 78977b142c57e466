"""Endpoints for scripts on a real server: the code of docs/api.md, and refused requests."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service
from tests.support.evaluation_data import two_balls

gradio_client = pytest.importorskip("gradio_client")
PAGE = (Path(__file__).parents[3] / "docs/api.md").read_text()
AUTH = "Basic " + base64.b64encode(b"ann:secret").decode()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image, _, affine = two_balls(0)
    path = tmp_path_factory.mktemp("shown") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), path)
    return path


@pytest.fixture(scope="module")
def server(scan: Path) -> Iterator[tuple[str, Service]]:
    """A server with login: its address and its service."""
    service = Service(roots=[scan.parent], upload_bytes=500_000)
    with running(service, auth=[("ann", "secret")]) as url:
        yield url, service
    assert not service.exchange.folder.exists()


@pytest.fixture
def client(server: tuple[str, Service]) -> Any:
    return gradio_client.Client(server[0], verbose=False, headers={"Authorization": AUTH})


@pytest.mark.slow
def test_the_code_in_the_page_runs(
    server: tuple[str, Service], scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = server
    monkeypatch.chdir(tmp_path)
    shutil.copy(scan, "scan.nii.gz")
    before = len(service.workspaces)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace('"http://127.0.0.1:7860/"', f'"{url}", headers={{"Authorization": "{AUTH}"}}')
    names: dict[str, Any] = {}
    exec(code, names)
    saved = nib.load(names["mask"])
    assert np.array_equal(saved.affine, nib.load(scan).affine)
    labels = np.asanyarray(saved.dataobj)
    assert set(np.unique(labels)) == {0, 1}  # the box was undone
    assert (labels == 1).sum() == names["answer"]["objects"][0]["voxels"] > 0
    assert labels[24, 22, 12] == 1 and labels[3, 3, 3] == 0
    assert Path(names["mask"]).name == "scan_mask.nii.gz"
    assert len(service.workspaces) == before
    remaining = [path.name for path in service.exchange.folder.rglob("*") if path.is_file()]
    assert remaining == ["scan_mask.nii.gz"]  # the upload is deleted
    for endpoint in re.findall(r"^\| `(/\w+)`", PAGE, re.MULTILINE):
        assert endpoint in names["client"].view_api(return_format="dict")["named_endpoints"], endpoint


@pytest.mark.slow
def test_another_mask_can_be_chosen(client: Any) -> None:
    client.predict(path="scan.nii.gz", api_name="/open")
    with pytest.raises(Exception, match="click first"):
        client.predict(api_name="/alternatives")
    shown = client.predict(i=24, j=22, k=12, api_name="/click")["objects"][0]
    masks = client.predict(api_name="/alternatives")
    assert [mask["number"] for mask in masks] == list(range(1, len(masks) + 1)) and len(masks) > 1
    assert [mask["volume_ml"] for mask in masks if mask["shown"]] == [shown["volume_ml"]]
    other = next(mask for mask in masks if not mask["shown"])
    chosen = client.predict(number=other["number"], api_name="/choose")["objects"][0]
    assert chosen["volume_ml"] == other["volume_ml"] and chosen["prompts"] == 2
    masks = client.predict(api_name="/alternatives")
    assert [mask["number"] for mask in masks if mask["shown"]] == [other["number"]]
    with pytest.raises(Exception, match="numbered by size from 1; got 9"):
        client.predict(number=9, api_name="/choose")
    assert client.predict(api_name="/undo")["objects"][0]["volume_ml"] == shown["volume_ml"]


@pytest.mark.slow
def test_mistakes_are_sentences(client: Any, scan: Path, tmp_path: Path) -> None:
    def refused(endpoint: str, **arguments: Any) -> str:
        """Call an endpoint that must fail; return its error."""
        with pytest.raises(Exception) as refusal:
            client.predict(api_name=endpoint, **arguments)
        assert "Traceback" not in str(refusal.value)
        return str(refusal.value)

    assert "call /open first" in refused("/click", i=1, j=1, k=1)
    for path in ("../secret.nii", "/etc/passwd", "no.nii.gz"):
        assert "not in the folders" in refused("/open", path=path)
    for forged in ("/etc/passwd", str(scan), "", "a\0b"):  # a plain path, which the client does not upload
        assert "not sent to this server" in refused("/open", upload={"path": forged})
    note = tmp_path / "note.txt"
    note.write_text("hello")
    assert "is no volume" in refused("/open", upload=gradio_client.handle_file(note))
    client.predict(path="scan.nii.gz", api_name="/open")
    assert "outside" in refused("/click", i=999, j=0, k=0)
    assert "lower" in refused("/box", lower=[1, 2], upper=[3, 4, 5])
    assert "o9" in refused("/click", i=1, j=1, k=1, object="o9")
    assert client.predict(api_name="/state")["objects"] == []


def test_a_script_has_its_own_session(server: tuple[str, Service], client: Any) -> None:
    url, _ = server
    client.predict(path="scan.nii.gz", api_name="/open")
    client.predict(i=24, j=22, k=12, api_name="/click")
    second = gradio_client.Client(url, verbose=False, headers={"Authorization": AUTH})
    with pytest.raises(Exception, match="call /open first"):
        second.predict(api_name="/save_mask")
    with pytest.raises(Exception) as refusal:
        gradio_client.Client(url, verbose=False)
    assert "credentials" in str(refusal.value)


def test_uploads_of_scripts_are_bounded(server: tuple[str, Service]) -> None:
    url, service = server

    def post(size: int, value: int = 0) -> int:
        form = {"files": ("large.nii", bytes([value]) * size)}
        answer = httpx.post(url + "gradio_api/upload", files=form, headers={"Authorization": AUTH})
        return answer.status_code

    before = service.exchange.nbytes
    assert post(2_000_000) == 413  # by its Content-Length
    assert post(600_000) == 413  # the form is within its limit, the file is not
    unannounced = httpx.post(
        url + "gradio_api/upload", content=(bytes(9) for _ in range(2)), headers={"Authorization": AUTH}
    )
    assert unannounced.status_code == 411
    assert service.exchange.nbytes == before
    codes = [post(450_000, n) for n in range(9)]
    assert codes[0] == 200 and codes[-1] == 507
    assert service.exchange.nbytes <= 4 * 500_000 + (1 << 20)
    for path in service.exchange.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (0, 0))
    assert post(450_000) == 200 and service.exchange.nbytes < 1_000_000  # old files were deleted
