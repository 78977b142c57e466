"""Pretraining: reproducible windows, resuming, loss and learning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medsam_app.errors import SettingsError
from medsam_app.models.sam3d import MaskCandidates, build_sam3d_tiny
from medsam_app.pretraining.export_weights import export
from medsam_app.pretraining.trainer import PretrainTrainer, Recipe, dice_of, loss_of
from medsam_app.pretraining.windows import Mixture, SyntheticWindows, load_cases
from medsam_app.synthetic.sampler import Draws

pytestmark = pytest.mark.slow


def _recipe(**more: object) -> Recipe:
    settings = {
        "hours": 1,
        "shares": {"synthetic": 1},
        "windows": [(16, 2)],
        "rounds": (2, 2),
        "learning_rate": 1e-3,
    }
    return Recipe.model_validate(settings | more)


def test_recipe_in_the_repository_is_valid() -> None:
    recipes = Path(__file__).parents[2] / "models" / "recipes"
    for file in recipes.glob("*.json"):
        Recipe.model_validate_json(file.read_text())


@pytest.mark.parametrize("seed", range(6))
def test_synthetic_windows_are_reproducible_and_have_a_target(seed: int) -> None:
    window, again = (SyntheticWindows().draw(Draws(seed), 24) for _ in range(2))
    assert torch.equal(window.image, again.image)
    assert torch.equal(window.target, again.target)
    assert torch.isfinite(window.image).all()
    assert window.target.any()
    assert not window.target.all()


def test_windows_of_real_cases_show_their_target(shared_data: Path) -> None:
    mixture = Mixture(shared_data, {"real": 0.7, "heads": 0.3})
    for seed in range(12):
        window, again = mixture.draw(seed, 32), mixture.draw(seed, 32)
        assert torch.equal(window.image, again.image)
        assert torch.equal(window.target, again.target)
        assert window.target.any()
        assert window.valid[window.target].all()
        assert torch.isfinite(window.image).all()


def test_only_train_cases_are_trained_on(shared_data: Path) -> None:
    train = {(case.dataset, case.name) for case in load_cases(shared_data, "train")}
    dev = {(case.dataset, case.name) for case in load_cases(shared_data, "dev")}
    assert train
    assert dev
    assert not train & dev


def test_dice_and_loss_of_known_masks() -> None:
    target = torch.zeros(1, 1, 4, 4, 4)
    target[:, :, :2] = 1
    valid = torch.ones_like(target)
    half = torch.zeros_like(target)
    half[:, :, :1] = 1
    assert float(dice_of(half, target, valid)) == pytest.approx((2 * 16 + 1) / (16 + 32 + 1))
    good, bad = (target * 2 - 1) * 20, (1 - target * 2) * 20
    perfect, dice = loss_of(MaskCandidates(good, torch.ones(1, 1)), target, valid)
    awful, _ = loss_of(MaskCandidates(bad, torch.ones(1, 1)), target, valid)
    assert float(dice) == 1
    assert float(perfect) < 1e-4
    assert float(awful) > 10
    valid[:, :, 3] = 0
    ignored = good.clone()
    ignored[:, :, 3] = 20
    assert float(loss_of(MaskCandidates(ignored, torch.ones(1, 1)), target, valid)[0]) < 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_gives_the_same_losses(tmp_path: Path, optimizer: str) -> None:
    torch.set_num_threads(1)
    recipe = _recipe(optimizer=optimizer)
    trainer = PretrainTrainer(recipe, None, tmp_path, torch.device("cpu"))
    trainer.model.amp_dtype = None  # sums in bfloat16 are not reproducible on every processor
    for _ in range(2):
        trainer.train_step()
    trainer.save()
    again = PretrainTrainer(recipe, None, tmp_path, torch.device("cpu"))
    again.model.amp_dtype = None
    for _ in range(2):
        assert trainer.train_step()["loss"] == again.train_step()["loss"]
    out = tmp_path / "weights.safetensors"
    assert len(export(tmp_path, out)) == 64
    assert out.stat().st_size < 12_000_000


def test_a_saved_state_takes_precedence_over_given_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A resumed run neither loads nor logs its initial weights."""
    weights, cpu = tmp_path / "weights.safetensors", torch.device("cpu")
    save_file({k: v.contiguous() for k, v in build_sam3d_tiny().state_dict().items()}, weights)
    out = tmp_path / "run"
    caplog.set_level("INFO", logger="medsam_app.pretraining.trainer")
    trainer = PretrainTrainer(_recipe(), None, out, cpu, weights)
    assert "tensors from" in caplog.text
    trainer.train_step()
    trainer.save()
    caplog.clear()
    again = PretrainTrainer(_recipe(), None, out, cpu, weights)
    assert "tensors from" not in caplog.text
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])


def test_muon_may_update_all_trained_parameters(tmp_path: Path) -> None:
    weights, kernel = tmp_path / "weights.safetensors", "encoder.stem.0.weight"
    save_file({k: v.contiguous() for k, v in build_sam3d_tiny().state_dict().items()}, weights)
    recipe = _recipe(optimizer="muon", only=kernel)
    trainer = PretrainTrainer(recipe, None, tmp_path / "run", torch.device("cpu"), weights)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train_step()
    moved = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert moved == [kernel]


def test_training_lowers_the_loss_on_one_window(tmp_path: Path) -> None:
    recipe = _recipe(warmup_steps=1, learning_rate=3e-3)
    trainer = PretrainTrainer(recipe, None, tmp_path, torch.device("cpu"))
    trainer.model.amp_dtype = None
    losses = []
    for _ in range(30):
        trainer.step = 0  # the same examples in each step
        losses.append(trainer.train_step()["loss"])
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_may_train_only_one_part(tmp_path: Path) -> None:
    recipe, cpu = _recipe(only="decoder.quality"), torch.device("cpu")
    with pytest.raises(SettingsError, match="--weights"):
        PretrainTrainer(recipe, None, tmp_path, cpu)
    weights = tmp_path / "weights.safetensors"
    known = {k: v.contiguous() for k, v in build_sam3d_tiny().state_dict().items() if "quality" not in k}
    save_file(known, weights)
    trainer = PretrainTrainer(recipe, None, tmp_path, cpu, weights)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train_step()
    moved = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(key.startswith("decoder.quality") for key in moved)
