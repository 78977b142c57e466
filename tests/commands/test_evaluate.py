"""The command `medsam-app evaluate`, on a small folder."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from medsam_app.cli.app import main
from medsam_app.errors import SaveError
from medsam_app.evaluate.files import write_scores
from medsam_app.measure.scores import Score
from tests.support.evaluation_data import write_folder

MEASURES = {
    "dice": "Mean Dice by dataset",
    "surface_dice": "Surface Dice (within one voxel) by dataset",
    "hd95": "HD95 in mm by dataset",
}


def run(*arguments: object) -> int:
    return main(["evaluate", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with three cases; the first cannot be read."""
    made = write_folder(tmp_path_factory.mktemp("evaluate") / "data", broken=True)
    (made / "old.csv").write_text("kept")
    return made


@pytest.mark.slow
def test_tables_and_files_agree(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scores, summary = tmp_path / "scores.csv", tmp_path / "summary.json"
    options = ("--clicks", "2,1", "--target", 0.9, "--baseline", "confidence", "--device", "cpu")
    assert run(folder, *options, "--csv", scores, "--json", summary) == 1
    shown = capsys.readouterr()
    assert "Skipped balls, case0: 'balls_case0.nii.gz' is cut short" in shown.err
    assert shown.err.splitlines()[-1] == "Skipped because they could not be read: 1 of the cases."

    rows = list(csv.DictReader(scores.open()))
    assert len(rows) == 2 * 4 * 2 and sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.csv",
        "summary.json",
    ]
    data = json.loads(summary.read_text())
    assert (data["split"], data["clicks"], data["first"], data["small"]) == ("dev", 2, "click", 2)
    assert (data["shown"], data["targets"], data["comparisons"]) == ([1, 2], [0.9], [])
    assert "to Dice 0.90" in shown.out and "to Dice 0.85" not in shown.out
    assert [each["case"] for each in data["skipped"]] == ["case0"] and "scores" not in data
    for each in data["summaries"]:
        own = [row for row in rows if row["method"] == each["method"]]
        for group in (group for group in each["groups"] if group["kind"] in ("dataset", "objects")):
            belongs = [r for r in own if group["kind"] == "objects" or r["dataset"] == group["name"]]
            for measure, title in MEASURES.items():
                for n, mean in group[measure].items():
                    wanted = [float(r[measure]) for r in belongs if r["click"] == n]
                    assert len(wanted) == group["objects"] == 2 * group["cases"]
                    assert mean["value"] == pytest.approx(sum(wanted) / len(wanted))
                # The table has the same numbers on the line of that group and method.
                lines = shown.out[shown.out.index(title) :].splitlines()
                first = group["name"].split()[0]
                start = next(n for n, line in enumerate(lines) if line.split()[:1] == [first])
                line = next(line for line in lines[start:] if each["method"] in line)
                for mean in group[measure].values():
                    digits = 1 if measure == "hd95" else 3
                    text = f"{mean['value']:.{digits}f}"
                    if mean["low"] < mean["high"]:  # one case has no interval
                        narrow = max(1, digits - 1)
                        text += f" ({mean['low']:.{narrow}f}-{mean['high']:.{narrow}f})"
                    assert text in line
    for kind in ("modality", "size of the object", "label"):
        assert f"Mean Dice by {kind}" in shown.out
    assert "Measuring 3 cases of" in shown.err and "split 'dev'" in shown.err
    assert "4 objects; 2 under 100 voxels were left out" in shown.out
    assert f"Saved {scores}." in shown.out and f"Saved {summary}." in shown.out


@pytest.mark.slow
def test_a_box_first_is_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    options = ("--first", "box", "--clicks", 2, "--most-cases", 1, "--device", "cpu")
    assert run(folder, *options) == 1  # the only case of 'balls' is damaged
    shown = capsys.readouterr().out
    assert "box + 1 click" in shown and "case0" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clicks", "0"], "At least one click an object is needed; got 0."),
        (["--clicks", "x"], "--clicks takes a number such as 10, or several such as 1,3,5,10; got 'x'."),
        (["--clicks", "3,0"], "At least one click an object is needed; got 0."),
        (["--clicks", "1,,2"], "--clicks takes a number"),
        (["--target", "85"], "A target is a Dice above 0 and up to 1, such as 0.85; got 85."),
        (["--tolerance", "-1"], "The tolerance is a distance in mm, 0 or more; got -1."),
        (["--tolerance", "nan"], "The tolerance is a distance in mm"),
        (["--dataset", "bals"], "There is no dataset 'bals'. Did you mean 'balls'?"),
        (["--label", "larger bal"], "There is no label 'larger bal'. Did you mean 'larger ball'?"),
        (["--base"], "there is no adapter; give one, or measure the model alone"),
        (["--adapter", "nowhere.safetensors"], "There is no adapter file 'nowhere.safetensors'"),
        (["--report", "report.pdf"], "cannot be named report.pdf; end its name in .html"),
        (["--report", "x.html", "--csv", "x.html"], "--csv and --report both name x.html"),
        (["--baseline", "waker"], "There is no baseline 'waker'. Did you mean 'walker'?"),
        (["--first", "bax"], "There is no first prompt 'bax'. Did you mean 'box'?"),
        (["--split", "dve"], "There is no split 'dve'. Did you mean 'dev'?"),
        (["--model", "sam3d_tinny"], "There is no model 'sam3d_tinny'"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--csv", "nowhere/x.csv"], "There is no folder nowhere"),
        (["--csv", "x.csv", "--json", "./x.csv"], "--csv and --json both name x.csv"),
        (["--json", "DATA/manifest.json", "--overwrite"], "is what is read here"),
        (["--csv", "DATA/manifest.json"], "is what is read here"),
        (["--csv", "DATA/old.csv"], "exists already; give another name, or --overwrite"),
        (["--csv", "DATA/one_only.nii.gz", "--overwrite"], "is what is read here"),
        (["--csv", "DATA"], "is a folder; give the name of a file"),
    ],
)
def test_errors_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run(folder, *(option.replace("DATA", str(folder)) for option in options)) == 2
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0] and errors[0] == shown.err.splitlines()[-1], shown.err
    assert "Traceback" not in shown.err and not shown.out
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_without_manifest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path) == 2
    assert "Error: No labelled cases were found in" in capsys.readouterr().err.splitlines()[-1]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from medsam_app.cli.app import main; status = main(['evaluate', '--help']); "
        "sys.exit(status or str({'torch', 'numpy', 'SimpleITK', 'skimage'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()" and "--baseline" in done.stdout


def test_files_are_written_completely_or_not_at_all(tmp_path: Path) -> None:
    score = Score("ours", "a", "CT", "b", 'a "name", quoted', 3, 120, 1, 0.5, None, 0, None)
    target = tmp_path / "scores.csv"
    target.write_text("before")
    write_scores([score], target)
    (row,) = csv.DictReader(target.open())
    assert row == {key: "" if value is None else str(value) for key, value in score.__dict__.items()}
    with pytest.raises(SaveError, match="could not be written"):
        write_scores([score], tmp_path / "nowhere" / "scores.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match="could not be written"):
        write_scores([score], tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "scores.csv"]
