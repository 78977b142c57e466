"""Learned prompts: labels are segmented by tokens of the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medsam_app.adapters.adapter import Adapter, learned_prompt
from medsam_app.adapters.header import read_header
from medsam_app.errors import AdapterError
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.synthetic.torso import torso_phantom


def teach_a_little(adapter: Adapter) -> None:
    """Change the untrained tensors, so that the adapter has an effect."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


@pytest.fixture
def model() -> Sam3D:
    torch.manual_seed(0)
    return load_model("sam3d_tiny")  # type: ignore[return-value]


def decoded(model: Sam3D, learned: torch.Tensor | None) -> torch.Tensor:
    image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    prompts = RoiPrompts(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.int64), learned=learned)
    with torch.no_grad():
        return model.decode(
            model.encode_image(image, torch.ones_like(image, dtype=torch.bool)), prompts
        ).logits


def test_a_sample_without_a_label_is_as_without_learned_prompts(model: Sam3D) -> None:
    adapter = Adapter.create("ssf", model, labels=[3, 7])
    adapter.enable()
    one = adapter.prompts.of(7)
    mixed = decoded(model, torch.cat([one, torch.full_like(one, torch.nan)]))
    nothing = decoded(model, None)
    torch.testing.assert_close(mixed[1], nothing[1])
    assert (mixed[0] - nothing[0]).abs().max() > 0.01
    assert (decoded(model, torch.cat([adapter.prompts.of(3)] * 2))[0] - mixed[0]).abs().max() > 0.01


def test_they_are_taught_and_saved(model: Sam3D, tmp_path: Path) -> None:
    adapter = Adapter.create("ssf", model, labels=[3, 7])
    adapter.enable()
    image = torch.randn(1, 1, 16, 16, 16)
    embedding = model.encode_image(image, torch.ones_like(image, dtype=torch.bool))
    none = torch.zeros(1, 0, dtype=torch.int64)
    prompts = RoiPrompts(torch.zeros(1, 0, 3), none, learned=adapter.prompts.of(7))
    model.decode(embedding, prompts).logits.square().mean().backward()
    grad = adapter.prompts.tokens.grad
    assert grad is not None and grad[1].abs().max() > 0 and grad[0].abs().max() == 0
    adapter.save(tmp_path / "a.safetensors", {"labels": {3: "left", 7: "right"}})
    assert read_header(tmp_path / "a.safetensors").prompts == (3, 7)
    adapter.remove()
    again = Adapter.load(tmp_path / "a.safetensors", model)
    assert torch.equal(again.prompts.of(7), adapter.prompts.of(7))


@pytest.mark.slow
def test_clip_spacing_and_window_come_from_the_card(model: Sam3D, tmp_path: Path) -> None:
    adapter = Adapter.create("ssf", model, labels=[1])
    teach_a_little(adapter)
    card = {
        "spacing": (2.0, 2.0, 2.0),
        "window": (32, 48, 32),
        "intensity": {"method": "clip", "low": -100, "high": 300.0},
    }
    adapter.save(tmp_path / "a.safetensors", card)
    predictor = VolumePredictor("sam3d_tiny", adapter=tmp_path / "a.safetensors", refine=False)
    predictor.set_volume(torso_phantom()[0])
    assert predictor.model.clip == (-100.0, 300.0)  # type: ignore[union-attr]
    plain = predictor.predict(points=[(80, 60, 40)])
    assert plain.roi.shape == (32, 48, 32) and plain.roi.spacing == (2.0, 2.0, 2.0)
    asked = predictor.predict(points=[(80, 60, 40)], label=1)
    assert asked.encoded == 0
    with pytest.raises(AdapterError, match="no label '2'"):
        predictor.predict(points=[(80, 60, 40)], label=2)


def test_a_model_alone_knows_no_labels() -> None:
    predictor = VolumePredictor()
    predictor.set_volume(torso_phantom()[0])
    with pytest.raises(AdapterError, match="no adapter is switched on"):
        predictor.predict(points=[(80, 60, 40)], label=1)


@pytest.mark.parametrize("labels", [[0], [1, 1], [-2]])
def test_labels_are_distinct_and_above_zero(model: Sam3D, labels: list[int]) -> None:
    with pytest.raises(AdapterError, match="distinct whole numbers above 0"):
        Adapter.create("ssf", model, labels=labels)


def test_an_adapter_without_labels(model: Sam3D) -> None:
    adapter = Adapter.create("ssf", model)
    adapter.enable()
    assert not any("prompts" in name for name in adapter.state_dict())
    with pytest.raises(AdapterError, match="knows no labels"):
        learned_prompt(model, 1)
