"""The command `medsam-app dataset inspect`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsam_app.cli.app import main
from medsam_app.datasets.find import find_cases
from medsam_app.datasets.fingerprint import fingerprint
from tests.datasets.test_fingerprint import FAULTS, faulty_folder
from tests.support.dicom_files import write_series
from tests.support.labelled_folders import decathlon, example, image, labels, save

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> int:
    return main(["dataset", "inspect", *(str(argument) for argument in arguments)])


def words(text: str) -> str:
    """Return printed text with single blanks between words, because table cells wrap."""
    return " ".join(text.split())


def test_a_valid_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, target = decathlon(tmp_path / "data"), tmp_path / "inspected.json"
    assert run(folder, "--json", target) == 0
    shown = capsys.readouterr()
    out = words(shown.out)
    for expected in (
        "layout Medical Segmentation Decathlon",
        "cases 2 usable",
        "splits not said",
        "modalities MR 2",
        "orientations LAI 2",
        "voxels 12 x 10 x 8 12 x 10 x 8 12 x 10 x 8",
        "spacing in mm 1.00 x 2.00 x 3.00",
        "MR 2 whole volume",
        "1 left lump 2 288 0.864 0.864 0.864",
        "2 right lump 2 240 0.72 0.72 0.72",
        "No problems were found.",
    ):
        assert expected in out
    assert shown.err.splitlines()[0] == "Reading 2 cases: Medical Segmentation Decathlon"
    data = json.loads(target.read_text())
    report = fingerprint(find_cases(folder))
    size = {"extent_mm": [4, 12, 18], "piece_mm": [4, 12, 18]}
    about = {"value": 1, "name": "left lump", "voxels": 144, "ml": 0.864}
    within = {str(key): value for key, value in report.cases[1].labels[0].intensities.items()}
    assert data["cases"][1]["labels"][0] == about | size | {"intensities": within}
    assert data["labels"][0]["mm_median"] == data["labels"][0]["piece_mm_95"] == 18
    assert data["cases"][0]["inside"] == {str(key): value for key, value in report.cases[0].inside.items()}
    assert (data["usable"], data["unusable"], data["problems"]) == (2, 0, [])


def test_the_example_of_the_docs(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    example(tmp_path / "Dataset007_Lumps")
    monkeypatch.chdir(tmp_path)
    assert run("Dataset007_Lumps") == 1
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    page = (ROOT / "docs" / "datasets.md").read_text()
    (block,) = re.findall(r"```text\n(Dataset\n.*?)\n```", page, re.DOTALL)
    assert block.splitlines() == shown
    (code, _) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == ["nnU-Net v2 raw folder", "3", "(1.0, 2.0, 3.0)"]


def test_all_errors_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = faulty_folder(tmp_path)
    assert run(path, "--json", tmp_path / "out.json") == 1
    shown = capsys.readouterr()
    out = words(shown.out)
    for (severity, kind, case), _ in FAULTS.items():
        assert words(f"{severity} {kind} {case or 'cases'}") in out
    errors = sum(key[0] == "error" for key in FAULTS)
    assert f"{errors} errors (the case cannot be used), " in out and "7 usable, 16 cannot be used" in out
    assert shown.err.splitlines()[-1] == "Cases that cannot be used: 16."
    assert len(json.loads((tmp_path / "out.json").read_text())["problems"]) == len(FAULTS) + 2


def test_long_lists_of_warnings_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    speck = np.zeros_like(labels())
    speck[:2] = 1
    speck[2, 2, 2] = 2
    for n in range(12):
        save(tmp_path / f"c{n}.nii.gz", image(n))
        save(tmp_path / f"c{n}_seg.nii.gz", speck)
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("small object") == 10
    assert "0 errors (the case cannot be used), 14 warnings; 2 more warnings like these" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no file or folder 'nowhere'"),
        (["DATA/imagesTr"], "No labelled cases were found in"),
        (["DATA", "--json", "DATA/dataset.json", "--overwrite"], "is what is read here"),
        (["DATA", "--json", "DATA/labelsTr/lump_0.nii.gz", "--overwrite"], "is what is read here"),
        (
            ["DATA", "--json", "DATA/imagesTs/lump_9.nii.gz"],
            "exists already; give another name, or --overwrite",
        ),
        (["DATA", "--json", "DATA"], "is a folder; give the name of a file"),
        (["DATA", "--json", "nowhere/x.json"], "There is no folder nowhere"),
        ([], "path"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    folder = decathlon(tmp_path / "data")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(*(argument.replace("DATA", str(folder)) for argument in arguments)) == 2
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1] and shown.err.startswith("Error: ") and not shown.out
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrite(tmp_path: Path) -> None:
    folder, target = decathlon(tmp_path / "data"), tmp_path / "out.json"
    target.write_text("before")
    assert run(folder, "--json", target) == 2 and target.read_text() == "before"
    assert run(folder, "--json", target, "--overwrite") == 0 and json.loads(target.read_text())["usable"] == 2


def test_a_slice_of_an_image_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scan = write_series(tmp_path / "images/a", image(1).clip(0).astype(np.uint16))
    save(tmp_path / "labels/a.nii.gz", labels())
    first = next(scan.iterdir())
    before = first.read_bytes()
    assert run(tmp_path, "--json", first, "--overwrite") == 2 and first.read_bytes() == before
    assert "is what is read here" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["dataset", "--help"], ["dataset", "inspect", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from medsam_app.cli.app import main; status = main({arguments}); "
        "sys.exit(status or str({'torch', 'numpy', 'SimpleITK', 'nibabel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()" and "inspect" in done.stdout
