"""Baseline networks of MONAI, trained on the same windows as an adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medsam_app.batch.run import segment_folder
from medsam_app.errors import ModelError, SettingsError
from medsam_app.finetuning.baseline_trainer import BaselineTrainer, check_baseline
from medsam_app.io.loading import load_mask
from medsam_app.predict.baseline_net import BaselineNet, build_baseline
from medsam_app.training.loop import run
from tests.support.teaching_folder import ball_cases, small_plan

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def make_trainer(tmp_path: Path, name: str = "unet", **fields: object) -> BaselineTrainer:
    cases = ball_cases(tmp_path / "data")
    return BaselineTrainer(name, small_plan(**fields), cases[1:], tmp_path / name, CPU, memory=1e9)


def test_it_learns_and_segments_on_the_files_grid(tmp_path: Path) -> None:
    fields = {"steps": 80, "learning_rate": 0.01, "warmup_steps": 3, "ema": 0.5, "batch": 4}
    trained = make_trainer(tmp_path, **fields, window=(32, 32, 32), spacing=1.5)
    assert run(trained)
    trained.keep(tmp_path / "unet.safetensors")
    net = BaselineNet(tmp_path / "unet.safetensors", CPU)
    assert (net.name, tuple(net.labels)) == ("unet", (1, 2))
    volume, truth = ball_cases(tmp_path / "data")[0].load()
    net.set_volume(volume)
    predicted = net.predict_labels()
    assert predicted.shape == volume.shape
    for value in (1, 2):
        overlap = np.count_nonzero((predicted == value) & (truth == value))
        assert 2 * overlap / (np.count_nonzero(predicted == value) + np.count_nonzero(truth == value)) > 0.6
    # It segments a folder as an adapter does.
    settings = {"automatic": True, "net": tmp_path / "unet.safetensors", "probabilities": True}
    result = segment_folder(tmp_path / "data/imagesTr", tmp_path / "out", device="cpu", **settings)
    assert [len(case.outputs) for case in result.having("done")] == [3, 3, 3, 3]
    np.testing.assert_array_equal(load_mask(tmp_path / "out/balls_0.nii.gz", volume.grid), predicted)
    with pytest.raises(SettingsError, match="'net' finds all labels"):
        segment_folder(tmp_path / "data/imagesTr", tmp_path / "other", **settings, only=["larger ball"])


def test_it_resumes(tmp_path: Path) -> None:
    uninterrupted = make_trainer(tmp_path)
    run(uninterrupted)
    resumed = tmp_path / "other"
    resumed.mkdir()
    first = make_trainer(resumed)
    assert not run(first, stopped=lambda: first.step == 2)
    second = make_trainer(resumed)
    assert second.step == 2
    run(second)
    for key, value in uninterrupted.average.items():
        assert torch.equal(value, second.average[key])


def test_a_transformer_needs_windows_that_fit() -> None:
    with pytest.raises(SettingsError, match=r"64 or more; 'window' is 32 x 32 x 32"):
        check_baseline("swin_unetr", small_plan(window=(32, 32, 32)))
    with pytest.raises(SettingsError, match="There is no baseline 'u_net'"):
        check_baseline("u_net", small_plan())
    with torch.no_grad():
        net = build_baseline("swin_unetr", 2).eval()
        assert net(torch.zeros(1, 2, 32, 32, 64)).shape == (1, 3, 32, 32, 64)


def test_a_transformer_is_trained_and_resumed(tmp_path: Path) -> None:
    fields = {"window": (64, 32, 32), "steps": 2, "batch": 1}  # its state holds integers too
    uninterrupted = make_trainer(tmp_path, "swin_unetr", **fields)
    run(uninterrupted)
    resumed = tmp_path / "other"
    resumed.mkdir()
    first = make_trainer(resumed, "swin_unetr", **fields)
    assert not run(first, stopped=lambda: first.step == 1)
    second = make_trainer(resumed, "swin_unetr", **fields)
    run(second)
    assert any(not value.is_floating_point() for value in uninterrupted.average.values())
    for key, value in uninterrupted.average.items():
        assert torch.equal(value, second.average[key])


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    for name in ("x.safetensors", "y.safetensors"):
        with pytest.raises(ModelError, match="is no network that medsam-app finetune"):
            BaselineNet(tmp_path / name, CPU)
