"""Several adapters of one model, switched by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.adapter_set import AdapterSet
from medsam_app.errors import AdapterError
from tests.support.adapter_backbones import BACKBONES, CUBE, Backbone, hooks_of

KINDS = ["bottleneck", "lora", "spatial", "ssf"]


def saved(model: nn.Module, folder: Path, kind: str, also: tuple[str, ...] = ()) -> Path:
    """Write an adapter with random tensors, and return its path."""
    adapter = Adapter.create(kind, model, also=also)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return adapter.save(folder / f"{kind}.safetensors")


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_side_by_side(backbone: Backbone, tmp_path: Path) -> None:
    model = backbone.make()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {}
    with torch.inference_mode():
        alone = backbone.run(model)
    for kind in KINDS:
        path = saved(model, tmp_path, kind, backbone.also)
        adapter = Adapter.load(path, model)
        adapter.enable()
        with torch.inference_mode():
            expected[kind] = backbone.run(model)
        adapter.remove()
    adapters = AdapterSet(model)
    for kind in KINDS:
        assert adapters.load(tmp_path / f"{kind}.safetensors") == kind
        adapters.use(kind)  # the next is loaded while this one is in use
    assert adapters.names == KINDS
    for kind in ["lora", "ssf", None, "spatial", "bottleneck", "lora", "lora", None]:
        adapters.use(kind)
        assert adapters.active == kind
        assert model.adapter_sha256 == ("" if kind is None else adapters[kind].sha256)
        with torch.inference_mode():
            assert torch.equal(backbone.run(model), alone if kind is None else expected[kind])
    adapters.use("ssf")
    adapters["ssf"].merge()
    adapters.use("lora")
    with torch.inference_mode():
        assert torch.equal(backbone.run(model), expected["lora"])
    for kind in KINDS:
        adapters.remove(kind)
    assert adapters.names == [] and adapters.active is None and list(hooks_of(model)) == []
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_outside_the_set_is_switched_off(tmp_path: Path) -> None:
    model = CUBE.make()
    with torch.inference_mode():
        alone = CUBE.run(model)
    adapters = AdapterSet(model)
    adapters.load(saved(model, tmp_path, "ssf"))
    own = Adapter.load(saved(model, tmp_path, "lora"), model)
    own.enable()
    adapters.use("ssf")
    assert adapters.active == "ssf" and not own.enabled
    adapters.use(None)
    own.enable()
    adapters.use(None)
    with torch.inference_mode():
        assert torch.equal(CUBE.run(model), alone)


def test_what_a_set_refuses(tmp_path: Path) -> None:
    model = CUBE.make()
    adapters = AdapterSet(model)
    with pytest.raises(AdapterError, match="There is no adapter 'liver': none is loaded"):
        adapters.use("liver")
    path = saved(model, tmp_path, "lora")
    adapters.load(path, name="liver")
    adapters.use("liver")
    with pytest.raises(AdapterError, match=r"The adapter of 'lora.safetensors' is here already, as 'liver'"):
        adapters.load(path, name="kidney")
    with pytest.raises(AdapterError, match="There is an adapter 'liver' already; give another name"):
        adapters.load(saved(model, tmp_path, "ssf"), name="liver")
    with pytest.raises(
        AdapterError, match=r"There is no adapter 'lever'. Did you mean 'liver'\? Known: liver"
    ):
        adapters.use("lever")
    assert adapters.active == "liver"
    with pytest.raises(AdapterError, match="'other' was added to another model"):
        adapters.add("other", Adapter.create("ssf", CUBE.make()))
    with pytest.raises(AdapterError, match="There is no adapter 'ssf'"):
        adapters.remove("ssf")
    assert adapters.names == ["liver"]
