"""The command `medsam-app pretrain`, on tiny recipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medsam_app.cli.app import main
from medsam_app.pretraining.recipe import Recipe
from medsam_app.pretraining.trainer import PretrainTrainer
from medsam_app.pretraining.validation import ROUNDS, Validation
from medsam_app.training.checkpoint import read_state
from medsam_app.training.loop import Measure, RunLog, run
from tests.support.evaluation_data import write_folder
from tests.support.forked_cli import ForkedCli

SETTINGS = {
    "steps": 4,
    "shares": {"synthetic": 1},
    "windows": [[16, 1]],
    "rounds": [2, 2],
    "learning_rate": 1e-3,
    "warmup_steps": 2,
    "validate_steps": 2,
    "validation_windows": 2,
}
CPU = torch.device("cpu")


def pretrain(*arguments: object) -> int:
    return main(["pretrain", *(str(argument) for argument in arguments)])


def write_changed_recipe(folder: Path, **more: object) -> Path:
    """Write the recipe above to a file with some changed settings; None removes one."""
    settings = {key: value for key, value in (SETTINGS | more).items() if value is not None}
    file = folder / "recipe.json"
    file.write_text(json.dumps(settings))
    return file


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def exact_trainer(recipe: Recipe, out: Path) -> PretrainTrainer:
    """Make training deterministic: sums in bfloat16 and over several threads vary on some processors."""
    torch.set_num_threads(1)
    trainer = PretrainTrainer(recipe, None, out, CPU)
    trainer.model.amp_dtype = None
    return trainer


def _examined(trainer: PretrainTrainer) -> Measure:
    windows = Validation(trainer.settings, None)
    return lambda stopped: windows.measure(trainer.averaged(), trainer.device, stopped=stopped)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_gives_the_same_result(tmp_path: Path, optimizer: str) -> None:
    recipe = Recipe.model_validate(SETTINGS | {"optimizer": optimizer})
    straight = exact_trainer(recipe, tmp_path / "straight")
    straight.out.mkdir()
    assert run(straight, watchers=[RunLog(straight.out, 0)])

    parts = tmp_path / "parts"
    parts.mkdir()
    first = exact_trainer(recipe, parts)
    assert not run(first, watchers=[RunLog(parts, 0)], stopped=lambda: first.step == 2)
    second = exact_trainer(recipe, parts)
    assert second.step == 2
    # Validation does not affect training.
    assert run(second, _examined(second), watchers=[RunLog(parts, 2)])

    for expected_row, row in zip(rows(straight.out / "log.jsonl"), rows(parts / "log.jsonl"), strict=True):
        assert {**expected_row, "seconds": 0} == {**row, "seconds": 0}
    for name in ("model", "average", "optimizer"):
        one, two = (read_state(folder, [name])[1][0] for folder in (straight.out, parts))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_learning_rate_follows_steps_or_the_clock(tmp_path: Path) -> None:
    trainer = PretrainTrainer(Recipe.model_validate(SETTINGS), None, tmp_path, CPU)
    trainer.step, trainer.seconds = 2, 1e9
    assert trainer.learning_rate() == pytest.approx(1e-3 * (0.02 + 0.98 / 2))
    timed = {key: value for key, value in SETTINGS.items() if key not in ("steps", "validate_steps")}
    trainer.settings = Recipe.model_validate(timed | {"hours": 2})
    trainer.step, trainer.seconds = 10**6, 3600
    assert trainer.learning_rate() == pytest.approx(1e-3 * (0.02 + 0.98 / 2))
    assert trainer.settings.validations(10**6, 3599.0) == 2  # every twenty minutes
    assert trainer.settings.validations(10**6, 3600.0) == 3


def test_a_run_counted_in_hours(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = write_changed_recipe(tmp_path, steps=None, validate_steps=None, hours=1e-6, validation_windows=1)
    out = tmp_path / "run"
    assert pretrain(recipe, "--out", out) == 0
    shown = capsys.readouterr()
    assert "100 %: step 1, 0.00 of 0.00 h, loss " in shown.err
    # The end is measured although fewer than twenty minutes have passed.
    assert [row["step"] for row in rows(out / "validation.jsonl")] == [0, 1]
    logged = rows(out / "log.jsonl")[-1]["seconds"]
    assert read_state(out, [])[0]["seconds"] == pytest.approx(logged, abs=0.06)


def test_validation_can_be_disabled(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert pretrain(write_changed_recipe(tmp_path, steps=1, validate_steps=0), "--out", out) == 0
    assert not (out / "validation.jsonl").exists()
    assert (out / "average.safetensors").is_file()


@pytest.mark.slow
def test_the_command_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    options = ("--out", out, "--data", write_folder(tmp_path / "data"), "--tensorboard")
    assert pretrain(write_changed_recipe(tmp_path), *options) == 0
    shown = capsys.readouterr()
    assert f"Done after 4 steps; the weights are {out / 'average.safetensors'}." in shown.out
    assert "100 %: step 4 of 4, loss " in shown.err
    assert Recipe.model_validate_json((out / "recipe.json").read_text()) == Recipe.model_validate(SETTINGS)

    validation_rows = rows(out / "validation.jsonl")
    assert [row["step"] for row in validation_rows] == [0, 2, 4]
    assert all(len(row[kind]) == ROUNDS for row in validation_rows for kind in ("synthetic", "dev"))
    assert f"Step 4, mean Dice by round: synthetic {validation_rows[-1]['synthetic'][0]:.3f} " in shown.err
    trained = rows(out / "log.jsonl")
    assert [row["step"] for row in trained] == [1, 2, 3, 4]

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert [event.value for event in board.Scalars("training/loss")] == pytest.approx(
        [row["loss"] for row in trained]
    )
    assert [(event.step, event.value) for event in board.Scalars("dev/Dice of round 5")] == [
        (row["step"], pytest.approx(row["dev"][4])) for row in validation_rows
    ]

    # A second start finds a finished run; another recipe is refused.
    state = (out / "state.safetensors").read_bytes()
    assert pretrain(tmp_path / "recipe.json", *options) == 0
    assert pretrain(write_changed_recipe(tmp_path, learning_rate=0.002), *options) == 2
    message = "holds a run of another recipe (learning_rate: 0.001, here 0.002); give another --out"
    assert message in capsys.readouterr().err
    assert (out / "state.safetensors").read_bytes() == state
    # A folder without a stored recipe adopts the given one.
    (out / "recipe.json").unlink()
    assert pretrain(tmp_path / "recipe.json", *options) == 0
    assert (out / "recipe.json").is_file()


@pytest.mark.forked
@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["pretrain", write_changed_recipe(tmp_path, steps=500), "--out", out, "--device", "cpu"]
    started = ForkedCli(command)
    try:
        for _ in range(600):
            if (out / "log.jsonl").is_file() or started.poll() is not None:
                break
            time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        messages = started.communicate(timeout=60)[1]
    finally:
        started.kill()
    state = read_state(out, [])[0]
    assert 1 <= state["step"] == len(rows(out / "log.jsonl")) < 500
    assert started.returncode == 130
    assert messages.endswith(
        f"Saved in {out} after step {state['step']}; the same command goes on from there.\nStopped.\n"
    )
    again = PretrainTrainer(Recipe.model_validate(SETTINGS | {"steps": 500}), None, out, CPU)
    assert again.train_step()["step"] == state["step"] + 1


def test_a_killed_run_has_one_log_line_per_step(tmp_path: Path) -> None:
    for name in ("log.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = RunLog(tmp_path, 2)
    log.trained({"step": 3}, 0.5)
    assert rows(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert rows(tmp_path / "validation.jsonl") == [{"step": 1}, {"step": 2}]
    RunLog(tmp_path, 0)  # nothing was saved: the run starts from the beginning
    assert rows(tmp_path / "log.jsonl") == []


@pytest.mark.slow
def test_several_processes_share_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = write_changed_recipe(tmp_path, steps=2, validation_windows=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "medsam_app", "pretrain", str(recipe), "--out", str(out), "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done after 2 steps") == 1
    assert [row["step"] for row in rows(out / "log.jsonl")] == [1, 2]
    assert [row["step"] for row in rows(out / "validation.jsonl")] == [0, 2]


@pytest.mark.slow
def test_validation_is_fixed_and_measures_progress(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(SETTINGS | {"windows": [[16, 2]], "validation_windows": 3})
    data = write_folder(tmp_path / "data")
    one, two = Validation(recipe, data), Validation(recipe, data)
    assert list(one.batches) == ["synthetic", "dev"]
    for kind, batches in one.batches.items():
        assert sum(len(batch.image) for batch in batches) == 3
        for first_batch, second_batch in zip(batches, two.batches[kind], strict=True):
            assert torch.equal(first_batch.image, second_batch.image)
            assert torch.equal(first_batch.target, second_batch.target)
    trainer = exact_trainer(recipe, tmp_path)
    before = one.measure(trainer.averaged(), CPU)
    assert before == two.measure(trainer.averaged(), CPU)
    assert one.measure(trainer.averaged(), CPU, stopped=lambda: True) is None
    # Validation measures the averaged weights, not the latest.
    trainer.train_step()
    trainer.average = {key: torch.zeros_like(value) for key, value in trainer.average.items()}
    assert all(not parameter.any() for parameter in trainer.averaged().parameters())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stepps": 3}, "There is no setting 'stepps'. Did you mean 'steps'?"),
        ({"hours": 1}, "Exactly one of 'hours' and 'steps'"),
        ({"steps": None}, "Exactly one of 'hours' and 'steps'"),
        ({"steps": None, "hours": 1}, "'validate_steps' does not go with the length of this run"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1."),
        ({"learning_rate": None}, "learning_rate: Field required."),
        ({"shares": {"syntetic": 1}}, "There is no share 'syntetic'. Did you mean 'synthetic'?"),
        ({"shares": {"synthetic": 0}}, "At least one share must be above zero."),
        ({"shares": {"real": 1}}, "The recipe draws no synthetic windows, so labelled volumes are needed"),
        ({"learning_rate": float("inf")}, "learning_rate: Input should be a finite number."),
        ({"shares": {"synthetic": float("inf")}}, "shares.synthetic: Input should be a finite number."),
        ({"seed": 2**64}, "seed: Input should be less than"),
        ({"windows": [[20, 1]]}, "windows.0.0: Input should be a multiple of 16."),
        ({"rounds": [3, 2]}, "The fewest rounds come first"),
        ({"only": "decoder.qality"}, "There is no part of the model 'decoder.qality'."),
    ],
)
def test_wrong_recipes(tmp_path: Path, capsys: pytest.CaptureFixture, more: dict, message: str) -> None:
    assert pretrain(write_changed_recipe(tmp_path, **more), "--out", tmp_path / "run") == 2
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1]
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = write_changed_recipe(tmp_path), ("--out", tmp_path / "run")
    heads = tmp_path / "heads.json"
    heads.write_text(json.dumps(SETTINGS | {"shares": {"heads": 1}}))
    real = tmp_path / "real.json"
    real.write_text(json.dumps(SETTINGS | {"shares": {"real": 1}}))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    data, empty, torn = write_folder(tmp_path / "data"), tmp_path / "empty", tmp_path / "torn"
    empty.mkdir()
    torn.mkdir()
    (torn / "manifest.json").write_text("{")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"other": torch.zeros(1)}, foreign)
    for arguments, message in [
        ((tmp_path / "nowhere.json", *out), "nowhere.json cannot be read (No such file or directory)"),
        ((tmp_path, *out), "cannot be read (Is a directory)"),
        ((broken, *out), "broken.json is wrong: Invalid JSON"),
        ((recipe,), "--out"),
        ((recipe, *out, "--data", tmp_path / "nowhere"), "There is no folder"),
        ((real, *out, "--data", empty), "manifest.json"),
        ((recipe, *out, "--data", torn), "manifest.json is no manifest of labelled cases"),
        ((real, *out, "--data", data), "There is no split 'train'. Known: dev."),
        ((heads, *out, "--data", data), "The recipe paints label maps of heads, but there are none"),
        ((recipe, *out, "--weights", tmp_path / "nowhere.pth"), "There is no file of weights"),
        ((recipe, *out, "--weights", foreign), "No tensor of 'foreign.safetensors' fits this model"),
        ((recipe, *out, "--device", "cuda:99"), "Device 'cuda:99' was asked for"),
        ((recipe, "--out", recipe), "cannot be the folder of a run"),
    ]:
        assert pretrain(*arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert pretrain(recipe, *out, "--tensorboard") == 2
    assert "run 'pip install tensorboard'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_damaged_run_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe, out = write_changed_recipe(tmp_path), tmp_path / "run"
    out.mkdir()
    (out / "state.safetensors").write_text('{"step": 3, "seconds": 1.0}')
    assert pretrain(recipe, "--out", out) == 2
    assert f"The run saved in {out} is damaged or of another model" in capsys.readouterr().err


def test_labels_too_small_to_train_on_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_folder(tmp_path / "data", cases=0)
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dev"', '"train"'))
    label = next(data.glob("*_labels.nii.gz"))
    image = nib.load(label)
    specks = np.where(np.asarray(image.dataobj) == 3, 3, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(specks, image.affine), label)
    recipe = write_changed_recipe(tmp_path, shares={"real": 1})
    assert pretrain(recipe, "--out", tmp_path / "run", "--data", data) == 2
    assert "has a label of 100 voxels or more" in capsys.readouterr().err.splitlines()[-1]
