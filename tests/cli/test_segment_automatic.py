"""`segment --automatic` on the command line, and the code of docs/automatic.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medsam_app.adapters.adapter import Adapter
from medsam_app.cli.app import main
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.models.load import load_model
from medsam_app.predict.predictor import VolumePredictor
from tests.predict.test_whole_volume import GRIDS, dices
from tests.support.two_balls import DARK, NAMES, balls, taught

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("adapter") / "balls.safetensors")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray]:
    """Return the path of an image of both balls, and its label map."""
    volume, truth = balls(*GRIDS["oblique"], seed=3)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume.array, volume.affine), path)
    return path, truth


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_automatic_on_the_command_line(
    scan: tuple[Path, NDArray], adapter_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, truth = scan
    output = tmp_path / "labels.nii.gz"
    status = run("segment", path, "-o", output, "--adapter", adapter_file, "--automatic", "--largest")
    shown = capsys.readouterr()
    assert status == 0, shown.err
    saved: Any = nib.load(output)
    saved_labels = np.asarray(saved.dataobj)
    np.testing.assert_array_equal(saved.affine, nib.load(path).affine)
    assert min(dices(saved_labels, truth)) > 0.6
    names = json.loads(saved.header.extensions[0].get_content())
    assert names == {"labels": {str(value): name for value, name in NAMES.items()}}
    for value, name in NAMES.items():
        ml = (saved_labels == value).sum() * load_volume(path).grid.voxel_volume_ml
        assert f"{name} (label {value}): {ml:.2f} ml" in shown.out
    assert "checked by reading it back" in shown.out

    only = tmp_path / "dark.nrrd"
    arguments = ("segment", path, "-o", only, "--adapter", adapter_file, "--automatic")
    assert run(*arguments, "--only", "dark ball") == 0
    assert set(np.unique(load_mask(only, load_volume(path).grid))) == {0, DARK}


def test_a_click_with_a_label_that_was_taught(
    scan: tuple[Path, NDArray], adapter_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--label selects the label, and the prompt file stores it."""
    path, truth = scan
    at = np.argwhere(truth == DARK).mean(axis=0).round().astype(int)
    click = ("--point", ",".join(map(str, at)))
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("meant", "other", "again")}
    command = ("segment", path, *click, "--adapter", adapter_file, "--save-prompts")
    assert run(*command, tmp_path / "meant.json", "--label", DARK, "-o", files["meant"]) == 0
    assert f"has learned label {DARK}, dark ball" in capsys.readouterr().err
    assert run(*command, tmp_path / "other.json", "--label", DARK + 1, "-o", files["other"]) == 0
    assert "has learned" not in capsys.readouterr().err
    replay = ("segment", path, "--prompts", tmp_path / "meant.json", "--adapter", adapter_file)
    assert run(*replay, "-o", files["again"]) == 0
    meant, other, again = (np.asarray(nib.load(file).dataobj) for file in files.values())
    np.testing.assert_array_equal(again, meant)
    files_written = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("meant", "other")]
    assert [file["settings"]["by_label"] for file in files_written] == [True, False]

    predictor = VolumePredictor(adapter=adapter_file, device="cpu")
    predictor.set_volume(load_volume(path))
    for label, mask in ((DARK, meant), (None, other)):
        np.testing.assert_array_equal(predictor.predict(points=[at], label=label).mask, mask > 0)
    assert ((meant > 0) != (other > 0)).any()


ADAPTER = "ADAPTER"
BAD = [
    (["--automatic"], "--automatic finds the labels that an adapter was taught; give one with --adapter"),
    (["--automatic", "--adapter", "none.safetensors"], "There is no adapter file 'none.safetensors'"),
    (["--automatic", "--adapter", ADAPTER, "--point", "1,2,3"], "--automatic goes without prompts"),
    (["--automatic", "--adapter", ADAPTER, "--prompts", "p.json"], "--automatic goes without prompts"),
    (["--automatic", "--adapter", ADAPTER, "--label", "7"], "choose labels by --only"),
    (["--automatic", "--adapter", ADAPTER, "--no-refine"], "--automatic goes without prompts"),
    (["--automatic", "--adapter", ADAPTER, "--save-prompts", "p.json"], "--automatic goes without prompts"),
    (
        ["--automatic", "--adapter", ADAPTER, "--only", "liver"],
        "There is no label 'liver'. Known: 3, 7",
    ),
    (["--automatic", "--adapter", ADAPTER, "--model", "sam_vit_b"], "was made for the model 'sam3d_tiny'"),
    (["--point", "1,2,3", "--largest"], "--only and --largest are for --automatic"),
    (["--point", "1,2,3", "--only", "3"], "--only and --largest are for --automatic"),
    ([], "or --automatic with an adapter that was taught labels"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_mistakes_are_one_sentence(
    scan: tuple[Path, NDArray],
    adapter_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    command = [adapter_file if argument == ADAPTER else argument for argument in arguments]
    assert run("segment", scan[0], *command, "-o", tmp_path / "x.nii.gz") == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and said in errors[0], shown.err
    assert "Reading" not in shown.err and "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_labels_is_refused_before_anything_is_read(
    scan: tuple[Path, NDArray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = load_model("sam3d_tiny")
    file = Adapter.create("ssf", model).save(tmp_path / "plain.safetensors")
    assert run("segment", scan[0], "--automatic", "--adapter", file, "-o", tmp_path / "x.nii.gz") == 2
    shown = capsys.readouterr().err
    assert "'plain' was taught no labels" in shown and "Reading" not in shown


def test_the_code_in_the_page_runs(
    scan: tuple[Path, NDArray], adapter_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/automatic.md").read_text()
    monkeypatch.chdir(tmp_path)
    Path("scan.nii.gz").write_bytes(scan[0].read_bytes())
    Path("balls.safetensors").write_bytes(adapter_file.read_bytes())
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert min(dices(np.asarray(nib.load("labels.nii.gz").dataobj), scan[1])) > 0.6
    for line in re.findall(r"^medsam-app (.*)$", page, re.MULTILINE):
        assert run(*line.split(), "--overwrite") == 0
