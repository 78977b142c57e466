"""Training of an adapter: learning, resuming, several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.header import read_header
from medsam_app.errors import ModelError, SaveError, SettingsError
from medsam_app.finetuning.trainer import BEST, FinetuneTrainer
from medsam_app.finetuning.training_windows import VIEWS
from medsam_app.finetuning.validation import AUTOMATIC
from medsam_app.models.load import load_model
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.training.checkpoint import STATE, read_state, write_state
from medsam_app.training.loop import RunLog, run
from tests.support.forked_cli import run_cli
from tests.support.teaching_folder import LABELS, ball_cases, small_plan, write_balls

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def make_trainer(tmp_path: Path, name: str = "run", *, held_out: int = 1, **fields: Any) -> FinetuneTrainer:
    cases = ball_cases(tmp_path / "data")
    out = tmp_path / name
    out.mkdir(exist_ok=True)
    trainer = FinetuneTrainer(small_plan(**fields), cases[held_out:], cases[:held_out], out, CPU)
    trainer.model.amp_dtype = None  # bfloat16 would hide differences
    return trainer


def rows(out: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out)]


def test_labels_are_learned_and_requested(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 20, "learning_rate": 0.003, "warmup_steps": 3, "ema": 0.8}
    trainer = make_trainer(tmp_path, **fields, rounds=(1, 2), window=(32, 32, 32), spacing=1.5)
    assert trainer.validation is not None
    before = trainer.measure(lambda: False)
    assert before is not None
    run(trainer, None)
    after = trainer.measure(lambda: False)
    assert after is not None
    assert after[AUTOMATIC][0] > before[AUTOMATIC][0] + 0.3
    assert trainer.validation.score(after) > trainer.validation.score(before)
    # The saved file gives the same result in the predictor.
    card = read_header(trainer.out / BEST)
    assert (card.spacing, card.window, card.labels) == ((1.5,) * 3, (32, 32, 32), LABELS)
    assert card.prompts == (1, 2)
    predictor = VolumePredictor("sam3d_tiny", adapter=trainer.out / BEST, refine=False)
    volume, label_map = ball_cases(tmp_path / "data")[0].load()
    predictor.set_volume(volume)
    at = tuple(int(x) for x in (label_map == 2).nonzero()[0][:1]) and (29, 18, 10)
    truth = label_map == 2
    mask = predictor.predict(points=[at], label=2).mask
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6


def test_a_fresh_adapter_does_not_change_the_base(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    image, valid = torch.randn(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16, dtype=torch.bool)
    base = load_model("sam3d_tiny")
    trainer.model.amp_dtype = base.amp_dtype = None  # bfloat16 rounds differently with an adapter
    with torch.no_grad():
        embedding = trainer.model.encode_image(image, valid)
        torch.testing.assert_close(embedding.coarse, base.encode_image(image, valid).coarse)  # type: ignore[union-attr]
    assert all(not parameter.requires_grad for parameter in trainer.model.encoder.parameters())


def test_an_interrupted_run_gives_the_same_result(tmp_path: Path) -> None:
    fields = {"steps": 4, "validate_steps": 2, "patience": 0}
    straight = make_trainer(tmp_path, "straight", **fields)
    assert run(straight, straight.measure, watchers=[RunLog(straight.out, 0)])
    first = make_trainer(tmp_path, "parts", **fields)
    assert not run(first, first.measure, watchers=[RunLog(first.out, 0)], stopped=lambda: first.step == 3)
    second = make_trainer(tmp_path, "parts", **fields)
    assert second.step == 3
    assert run(second, second.measure, watchers=[RunLog(second.out, 3)])
    assert losses(straight.out) == losses(second.out)
    assert (
        rows(straight.out, "validation.jsonl")[-1]["clicks"]
        == rows(second.out, "validation.jsonl")[-1]["clicks"]
    )
    for key, value in straight.average.items():
        assert torch.equal(value, second.average[key])
    assert straight.best == second.best


@pytest.mark.parametrize("damage", [b"{}", None])
def test_a_damaged_run_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    trainer = make_trainer(tmp_path, steps=1)
    run(trainer)
    state = trainer.out / STATE
    state.write_bytes(state.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(ModelError, match=r"is damaged or of another model; give another --out|-o"):
        make_trainer(tmp_path, steps=1)


def test_the_saved_state_is_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def saved(number: int) -> dict[str, dict[str, torch.Tensor]]:
        return {name: {"x": torch.full((3,), float(number))} for name in ("a", "b", "c")}

    write_state(tmp_path, saved(1), {"step": 1})

    def ended(*_: object) -> None:
        raise OSError("the process ends here")

    monkeypatch.setattr(Path, "replace", ended)
    with pytest.raises(SaveError):
        write_state(tmp_path, saved(2), {"step": 2})
    state, groups = read_state(tmp_path, ["a", "b", "c"])
    assert state == {"step": 1} and all(group["x"].tolist() == [1, 1, 1] for group in groups)


def test_parts_of_a_batch_give_the_gradient_of_the_batch(tmp_path: Path) -> None:
    gradients = []
    for part in (None, 1, 3):
        trainer = make_trainer(tmp_path, f"by{part}", batch=4, micro_batch=part, rounds=(2, 2))
        row = trainer.train_step()
        flat = torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])
        gradients.append((row["loss"], flat))
    for loss, flat in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-5)
        torch.testing.assert_close(flat, gradients[0][1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("adapter", ["spatial", "lora", "ssf"])
def test_recomputed_activations_give_the_same_gradient(tmp_path: Path, adapter: str) -> None:
    gradients = []
    for again in (False, True):
        trainer = make_trainer(tmp_path, f"again{again}", adapter=adapter, checkpointing=again, rounds=(2, 2))
        trainer.train_step()
        gradients.append({n: p.grad for n, p in trainer.adapter.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("part") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_embeddings_of_a_frozen_encoder_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    fields = {"cached": True, "checkpointing": checkpointing, "batch": 4, "steps": 9, "rounds": (1, 1)}
    trainer = make_trainer(tmp_path, **fields)
    encode, encoded = trainer.model.encode_image, []
    monkeypatch.setattr(
        trainer.model, "encode_image", lambda image, valid: encoded.append(image) or encode(image, valid)
    )
    before = {key: value.clone() for key, value in trainer.adapter.state_dict().items()}
    values = [trainer.train_step()["loss"] for _ in range(trainer.settings.steps or 0)]
    assert all(loss < float("inf") for loss in values)
    views = trainer.windows.count * VIEWS
    assert views < 4 * len(values)
    assert len(encoded) == views  # one window each
    assert len({float(image.double().sum()) for image in encoded}) == views
    moved = {key for key, value in trainer.adapter.state_dict().items() if not value.equal(before[key])}
    assert any("decoder" in key for key in moved)
    assert not any(key.startswith("part") for key in moved)


def test_it_stops_without_improvement(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, steps=40, validate_steps=1, patience=2, learning_rate=1e-9, rounds=(1, 1)
    )
    assert not run(trainer, trainer.measure, stopped=trainer.stalled)
    assert trainer.stalled()
    assert trainer.step < 40


def test_batches_are_shared_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(SettingsError, match="3 processes cannot share 2 windows"):
        make_trainer(tmp_path)


@pytest.mark.forked
def test_two_processes_give_the_valuesof_one(tmp_path: Path) -> None:
    data = write_balls(tmp_path / "data")
    options = ["--steps", "2", "--set", "batch=2", "--set", "window=[16,16,16]", "--set", "spacing=2"]
    options += ["--set", "validate_steps=0", "--device", "cpu", "--no-preflight"]
    for name, extra in (("one", []), ("two", ["--processes", "2"])):
        command = ["finetune", data, "-o", tmp_path / name, *options, *extra]
        done = run_cli(command, timeout=500, environment={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Done after 2 steps") == 1
    one, two = (rows(tmp_path / f"{name}.run") for name in ("one", "two"))
    assert len(one) == 2
    for single, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert shared["dice"] == pytest.approx(single["dice"], abs=1e-3)


def test_every_kind_of_adapter_can_be_trained(tmp_path: Path) -> None:
    for kind in ("spatial", "bottleneck", "lora", "ssf"):
        trainer = make_trainer(tmp_path, kind, adapter=kind, steps=1, decoder=False)
        before = {key: value.clone() for key, value in trainer.adapter.state_dict().items()}
        run(trainer)
        moved = [key for key, value in trainer.adapter.state_dict().items() if not value.equal(before[key])]
        assert any(key.startswith("part") for key in moved)
        path = tmp_path / f"{kind}.safetensors"
        trainer.keep_last(path)
        assert Adapter.load(path, load_model("sam3d_tiny")).kind == kind  # type: ignore[arg-type]
