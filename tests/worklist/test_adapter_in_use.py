"""Training examples of a worklist, and the effects of its adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from medsam_app.browser.app import create_app
from medsam_app.browser.state.service import Service
from medsam_app.errors import SettingsError
from medsam_app.worklist.adapter_in_use import ADAPTERS, adapter_of, examples, use_adapter
from medsam_app.worklist.teaching_job import JOB
from medsam_app.worklist.teaching_state import TeachingState
from tests.browser.routes.test_worklist import HOME, ODD, User, make_folder
from tests.support.two_balls import BRIGHT, NAMES, balls, taught


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "shown" / "data").parent


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    new_service = Service(roots=[folder])
    yield new_service
    new_service.close()


@pytest.fixture
def ada(service: Service) -> User:
    return User(TestClient(create_app(service), base_url=HOME))


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("adapter") / "balls.safetensors", steps=40)


@pytest.mark.slow
def test_accepted_cases_are_the_examples(ada: User, service: Service, folder: Path) -> None:
    worklist = service.worklists.get(0, "data")
    for name in ("a", "b"):
        ada.open(name)
        reply = ada.click(12, 11, 10)
        ada.act(do="change_object", object=reply["state"]["selected"], name="ball <i>", label=5)
        assert ada.set_state(name, "accepted").status_code == 200
    assert examples(worklist)[1] == {5: "ball <i>"}
    cases = examples(worklist)[0]
    assert [example.case for example in cases] == ["a", "b"]
    assert all(example.image.is_file() and example.label.is_file() for example in cases)
    # One of several frames is not an example, not even the first: a list of files cannot identify it.
    frames = np.stack([nib.load(folder / "data/a.nii.gz").get_fdata(dtype=np.float32)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(frames, np.eye(4)), folder / "data/moving.nii.gz")
    ada.list(refresh=True)
    assert ada.post("worklist/case", root=0, path="data", name="moving", frame=0).status_code == 200
    ada.click(12, 11, 10)
    assert ada.set_state("moving", "accepted").status_code == 200
    assert [example.case for example in examples(worklist)[0]] == ["a", "b"]
    ada.open("b")
    # An empty case, or one that is no longer accepted, is not an example.
    ada.click(2, 2, 2, positive=False)
    ada.open(ODD)
    ada.set_state(ODD, "accepted", empty=True)
    assert [example.case for example in examples(worklist)[0]] == ["a"]
    reply = ada.post("worklist/teaching", root=0, path="data").json()
    assert (reply["usable"], reply["stage"], reply["in_use"], reply["log"]) == (1, "", "", None)
    refusal = ada.post("worklist/teach", root=0, path="data", what="start")
    assert refusal.status_code == 422 and "accepted cases" in refusal.json()["error"]
    for what in ("use", "resume"):
        assert ada.post("worklist/teach", root=0, path="data", what=what).status_code == 422
    assert ada.post("worklist/teach", root=0, path="data", what="rm -rf").status_code == 422


@pytest.mark.slow
def test_new_cases_start_with_the_objects_found_by_the_adapter(
    ada: User, service: Service, folder: Path, adapter_file: Path
) -> None:
    volume, labels = balls((46, 44, 22), np.diag([1.4, 1.4, 2.8, 1]))
    inside = [int(v) for v in np.argwhere(labels == BRIGHT)[0]]
    for name in ("a", ODD):
        nib.save(nib.Nifti1Image(volume.array, volume.affine), folder / f"data/{name}.nii.gz")
    worklist = service.worklists.get(0, "data")
    ada.open("b")
    ada.click(12, 11, 10)
    # Write the files of a run that ended with an offer.
    run = service.teaching_runs.run_of(worklist)
    with pytest.raises(SettingsError, match="No adapter is offered"):
        service.teaching_runs.do(worklist, "use", minutes=1, who="")
    run.folder.mkdir()
    run.adapter.write_bytes(adapter_file.read_bytes())
    job = TeachingState(stage="offered", began="", minutes=1, learned=[], kept=[])
    (run.folder / JOB).write_text(job.model_dump_json())
    reply = ada.post("worklist/teach", root=0, path="data", what="use").json()
    adapter = adapter_of(worklist)
    assert adapter is not None and adapter.parent == folder / "data" / ADAPTERS
    assert reply["used"] and reply["in_use"] == adapter.stem

    state = ada.open("a")["state"]
    ball = state["objects"][0]
    assert [(item["label"], item["name"]) for item in state["objects"]] == list(NAMES.items())
    assert [item["kind"] for item in ball["prompts"]] == ["mask"]
    assert ball["volume_ml"] > 0 and not state["can_undo"]
    # Untouched proposals are not saved as work; a click is.
    assert ada.row("a")["state"] == "new"
    ada.act(do="select", object=ball["id"])
    ada.click(*inside)
    assert ada.row("a")["version"] == 1
    made_by = json.loads(worklist.works("a")[0].made_by)
    assert made_by["adapter"] == adapter.stem and len(made_by["adapter_sha256"]) == 64
    # A case whose proposal is accepted without changes is also saved.
    ada.open(ODD)
    assert ada.set_state(ODD, "accepted").status_code == 200
    assert json.loads(worklist.works(ODD)[0].made_by) == made_by
    # A case started without the adapter keeps its prompts, with a note that masks may differ.
    reply_b = ada.open("b")
    assert [item["kind"] for item in reply_b["state"]["objects"][0]["prompts"]] == ["point"]
    assert any("no adapter" in message for message in reply_b["messages"])
    assert json.loads(worklist.works("b")[0].made_by) == {
        key: value for key, value in made_by.items() if not key.startswith("adapter")
    }


@pytest.mark.slow
def test_a_damaged_adapter_does_not_block_the_worklist(
    ada: User, service: Service, adapter_file: Path
) -> None:
    worklist = service.worklists.get(0, "data")
    adapter = use_adapter(worklist, adapter_file, who="ada")
    assert adapter is not None
    adapter.write_bytes(adapter.read_bytes()[:-100])
    reply = ada.open("a")
    assert reply["state"]["objects"] == []
    assert any("masks are made without it" in message for message in reply["messages"])
    assert use_adapter(worklist, None) is None and adapter_of(worklist) is None
    (worklist.path.parent / ADAPTERS / "in_use.json").write_text(
        '{"file": "../../x", "who": "", "since": ""}'
    )
    assert adapter_of(worklist) is None
