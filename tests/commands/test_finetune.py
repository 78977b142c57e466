"""`medsam-app finetune`: the plan, complete runs with their report, interruptions, and errors."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medsam_app.adapters.header import read_header
from medsam_app.cli.app import main
from tests.support.forked_cli import ForkedCli
from tests.support.labelled_folders import save
from tests.support.teaching_folder import write_balls

SMALL = ["--set", "batch=2", "--set", "window=[16,16,16]", "--set", "spacing=2", "--device", "cpu"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_the_plan_is_shown_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_balls(tmp_path / "data")
    options = ["--dry-run", "--no-preflight", "--set", "rotate=5", *SMALL]
    assert run("finetune", data, "-o", tmp_path / "balls", *options) == 0
    printed = capsys.readouterr().out
    assert "Plan, for 4 cases" in printed
    assert "1 larger ball, 2 smaller ball" in printed
    assert "5 degrees" in printed
    assert "as asked for" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.slow
def test_a_run_writes_an_adapter_a_page_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_balls(tmp_path / "data")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"rotate": 0, "steps": 99, "validate_steps": 1}))
    options = ["--steps", 2, "--settings", settings, "--baseline", "unet", *SMALL]
    drafts = [tmp_path / "balls.run" / name / ".saving-state.safetensors-12345678" for name in (".", "unet")]
    for draft in drafts:  # left by a run that was killed while saving its state
        draft.mkdir(parents=True)
        (draft / "state.safetensors").touch()
    assert run("finetune", data, "-o", tmp_path / "balls", *options) == 0
    assert not any(draft.exists() for draft in drafts)
    printed = capsys.readouterr().out
    assert "Done after 2 steps" in printed
    for method in ("sam3d_tiny + balls", "sam3d_tiny + balls, no prompt", "unet"):
        assert method in printed
    card = read_header(tmp_path / "balls.safetensors")
    assert card.labels == {1: "larger ball", 2: "smaller ball"}
    held_out = card.training["held_out"]
    assert isinstance(held_out, dict)
    assert held_out["cases"] == 1
    assert set(held_out["dice_by_clicks"]["sam3d_tiny"]) == {"1", "3", "5"}
    page = (tmp_path / "balls.html").read_text()
    assert "Loss by step" in page
    assert "https://" not in page
    folder = tmp_path / "balls.run"
    assert [row["step"] for row in rows(folder / "log.jsonl")] == [1, 2]
    assert [row["step"] for row in rows(folder / "validation.jsonl")] == [0, 1, 2]
    names = {path.name for path in folder.iterdir()}
    assert {"best.safetensors", "last.safetensors", "plan.json", "scores.json", "unet.safetensors"} <= names
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["rotate"], plan["steps"], plan["batch"]) == (0, 2, 2)
    # Another plan or dataset is refused in the same folder.
    assert run("finetune", data, "-o", tmp_path / "balls", "--steps", 3, *SMALL) == 2
    assert "holds a run of another plan (steps: 2, here 3)" in capsys.readouterr().err
    other_folder = write_balls(tmp_path / "other")
    assert run("finetune", other_folder, "-o", tmp_path / "balls", "--steps", 2, *SMALL) == 2
    assert "another plan (dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "rotate"], "--set takes ITEM=VALUE"),
        (["--set", "rotatoin=3"], "Did you mean 'rotate'?"),
        (["--set", "batch=0"], "'batch'"),
        (["--memory", "lots"], "--memory is a number of gigabytes"),
        (["--labels", "medium ball"], "medium ball"),
        (["--baseline", "unnet"], "Did you mean 'unet'?"),
        (["--base", "medsam_vit_b"], "cannot be taught here"),
        (["--adapter", "lore"], "Did you mean 'lora'?"),
        (["--split", "training"], "There is no split 'training'"),
        (["--set", "most_cases=few"], "At least one case of a dataset is needed; got few."),
        (["--weights", "nowhere.pth"], "There is no file of weights"),
        (["--minutes", "5", "--steps", "5"], "Exactly one of 'minutes' and 'steps'"),
    ],
)
def test_errors_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    data = write_balls(tmp_path / "data", cases=2)
    assert run("finetune", data, "-o", tmp_path / "balls", "--device", "cpu", *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "balls.run" / "plan.json").exists()


@pytest.mark.slow
def test_cases_with_faults_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_balls(tmp_path / "data", cases=6)
    first = data / "imagesTr/balls_0.nii.gz"
    first.write_bytes(first.read_bytes()[:200])
    (data / "labelsTr/balls_1.nii.gz").unlink()
    wrong = nib.load(data / "labelsTr/balls_2.nii.gz")
    save(data / "labelsTr/balls_2.nii.gz", np.asarray(wrong.dataobj)[:-4], wrong.affine)
    empty = nib.load(data / "labelsTr/balls_3.nii.gz")
    save(data / "labelsTr/balls_3.nii.gz", np.zeros_like(np.asarray(empty.dataobj)), empty.affine)
    options = ["--no-preflight", "--steps", 1, "--set", "validate_steps=0", *SMALL]
    assert run("finetune", data, "-o", tmp_path / "balls", *options) == 0
    printed = capsys.readouterr()
    assert "whether it fits into memory is not known" in printed.err
    assert "left out" in printed.err
    assert "Learning from 1 cases, measuring on 1" in printed.err


def test_a_dataset_without_usable_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_balls(tmp_path / "data", cases=1)
    (data / "imagesTr/balls_0.nii.gz").write_bytes(b"")
    assert run("finetune", data, "-o", tmp_path / "balls", "--device", "cpu") == 2
    assert "No case of" in capsys.readouterr().err


def start(data: Path, output: Path, steps: int) -> ForkedCli:
    options = ["--steps", steps, "--set", "save_minutes=0", "--set", "validate_steps=2", "--no-preflight"]
    return ForkedCli(["finetune", data, "-o", output, *SMALL, *options])


def wait_for_steps(log: Path, steps: int, process: ForkedCli) -> None:
    end = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) >= steps):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.forked
@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_result(tmp_path: Path) -> None:
    data = write_balls(tmp_path / "data")
    straight = start(data, tmp_path / "straight", 3)
    assert straight.wait(300) == 0, straight.communicate()[1]
    killed = start(data, tmp_path / "killed", 3)
    wait_for_steps(tmp_path / "killed.run" / "log.jsonl", 1, killed)
    killed.kill()
    killed.wait()
    again = start(data, tmp_path / "killed", 3)
    assert again.wait(300) == 0, again.communicate()[1]
    for name in ("log.jsonl", "validation.jsonl"):
        one, two = (rows(tmp_path / f"{which}.run" / name) for which in ("straight", "killed"))
        for row in (*one, *two):
            del row["seconds"]
        assert one == two
    one, two = (read_header(tmp_path / f"{which}.safetensors").sha256 for which in ("straight", "killed"))
    assert one == two


@pytest.mark.forked
@pytest.mark.slow
def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path) -> None:
    data = write_balls(tmp_path / "data")
    process = start(data, tmp_path / "balls", 400)
    wait_for_steps(tmp_path / "balls.run" / "log.jsonl", 3, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the best adapter so far is" in out
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert read_header(tmp_path / "balls.safetensors").prompts == (1, 2)
