"""Properties of every kind of adapter on every backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medsam_app.adapters.adapter import COMPONENTS, Adapter, adapter_in_use
from medsam_app.adapters.table import ADAPTER_KINDS
from medsam_app.errors import AdapterError
from tests.support.adapter_backbones import BACKBONES, CUBE, SAM, SAM3D, Backbone, hooks_of

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "spatial": ("spatial", {"bottleneck": 4}),
    "bottleneck": ("bottleneck", {"bottleneck": 4}),
    "lora": ("lora", {"rank": 2, "projections": ["q", "k", "v", "out", "mlp"]}),
    "lora-b": ("lora", {"rank": 2, "train": "b"}),
    "ssf": ("ssf", {}),
}
MERGEABLE = ["lora", "lora-b", "ssf"]
every_backbone = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
every_kind = pytest.mark.parametrize("case", KINDS)


def make(case: str, model: nn.Module, **more: Any) -> Adapter:
    kind, settings = KINDS[case]
    return Adapter.create(kind, model, **settings, **more)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def step(adapter: Adapter, model: nn.Module, backbone: Backbone) -> None:
    """Train one step, large enough to have a visible effect."""
    adapter.enable()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.05)
    backbone.run(model).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(case: str, model: nn.Module, backbone: Backbone, *, seed: int = 1, **more: Any) -> Adapter:
    torch.manual_seed(seed)
    adapter = make(case, model, **more)
    step(adapter, model, backbone)
    return adapter


@every_backbone
@every_kind
def test_fresh_equals_the_base_bit_for_bit(case: str, backbone: Backbone) -> None:
    model = backbone.make()
    with torch.no_grad():
        before = backbone.run(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            narrow = backbone.run(model)
        make(case, model, also=backbone.also).enable()
        assert torch.equal(backbone.run(model), before)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(backbone.run(model), narrow)


@every_backbone
@every_kind
def test_a_step_moves_the_adapter_alone_and_disabling_restores_the_base(
    case: str, backbone: Backbone
) -> None:
    model = backbone.make()
    parameters = list(model.parameters())
    base = state(model)
    with torch.inference_mode():
        output = backbone.run(model)
    adapter = make(case, model, also=backbone.also)
    fresh = state(adapter)
    step(adapter, model, backbone)
    moved = state(adapter)
    assert not same(fresh, moved)
    assert same(state(model), base)
    with torch.inference_mode():
        assert not torch.equal(backbone.run(model), output)
    adapter.disable()
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert same(state(model), base)
    with torch.inference_mode():
        assert torch.equal(backbone.run(model), output)
    assert same(state(adapter), moved)


@every_backbone
@every_kind
def test_gradients_reach_every_parameter_and_the_base_none(case: str, backbone: Backbone) -> None:
    model = backbone.make()
    adapter = trained(case, model, backbone)
    backbone.run(model).square().mean().backward()
    idle = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@every_backbone
@every_kind
def test_saved_and_loaded_under_another_seed(case: str, backbone: Backbone, tmp_path: Path) -> None:
    model = backbone.make()
    adapter = trained(case, model, backbone, also=backbone.also)
    with torch.no_grad():
        expected = backbone.run(model)
    adapter.save(tmp_path / "a.safetensors")
    torch.manual_seed(123)
    other = backbone.make()
    loaded = Adapter.load(tmp_path / "a.safetensors", other)
    with torch.no_grad():
        assert not torch.equal(backbone.run(other), expected)
        loaded.enable()
        assert torch.equal(backbone.run(other), expected)
    assert (loaded.kind, loaded.settings, loaded.sha256) == (adapter.kind, adapter.settings, adapter.sha256)


@every_backbone
@every_kind
def test_removed_leaves_nothing(case: str, backbone: Backbone) -> None:
    model = backbone.make()
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    adapter = trained(case, model, backbone, also=backbone.also)
    assert list(hooks_of(model))
    adapter.remove()
    assert list(hooks_of(model)) == []
    left = {name: set(vars(module)) - attributes[name] for name, module in model.named_modules()}
    assert {name: more for name, more in left.items() if more} in ({}, {"": {"adapter_id", "adapter_sha256"}})
    assert adapter_in_use(model) is None
    with pytest.raises(AdapterError, match="removed"):
        adapter.enable()


@every_backbone
@pytest.mark.parametrize("case", MERGEABLE)
def test_merged_equals_unmerged_and_comes_off_exactly(case: str, backbone: Backbone) -> None:
    model = backbone.make()
    base = state(model)
    adapter = trained(case, model, backbone, also=backbone.also)
    with torch.no_grad():
        expected = backbone.run(model)
        adapter.merge()
        torch.testing.assert_close(backbone.run(model), expected, rtol=1e-4, atol=1e-4)
        hooks = list(hooks_of(model))
    assert hooks == [": _load_state_dict_pre_hooks"]  # the one that refuses weights
    assert not same(state(model), base)
    assert adapter.merged and adapter.enabled
    with pytest.raises(AdapterError, match="merged already"):
        adapter.merge()
    with pytest.raises(AdapterError, match="unmerge it before weights are loaded"):
        model.load_state_dict(base)
    adapter.unmerge()
    assert same(state(model), base)
    with torch.no_grad():
        assert torch.equal(backbone.run(model), expected)
    with pytest.raises(AdapterError, match="not merged"):
        adapter.unmerge()
    adapter.merge()
    adapter.disable()
    assert same(state(model), base)
    assert list(hooks_of(model)) == []


@every_kind
def test_merging_what_cannot_be_merged(case: str) -> None:
    adapter = make(case, CUBE.make())
    assert ADAPTER_KINDS[adapter.kind].mergeable == (case in MERGEABLE)
    if case not in MERGEABLE:
        with pytest.raises(AdapterError, match=f"A '{adapter.kind}' adapter cannot be merged"):
            adapter.merge()


@every_backbone
@every_kind
def test_a_checkpoint_of_the_base_loads_strictly_while_an_adapter_is_on(
    case: str, backbone: Backbone
) -> None:
    model, other = backbone.make(0), backbone.make(1)
    adapter = trained(case, model, backbone, also=backbone.also)
    own = state(adapter)
    assert model.state_dict().keys() == other.state_dict().keys()
    model.load_state_dict(other.state_dict(), strict=True)
    assert same(state(model), state(other))
    assert same(state(adapter), own)
    with torch.no_grad():
        twin = make(case, other, also=backbone.also)
        twin.load_state_dict(own)
        twin.enable()
        assert torch.equal(backbone.run(model), backbone.run(other))
        adapter.disable()
        twin.disable()
        assert torch.equal(backbone.run(model), backbone.run(other))


@every_backbone
@every_kind
def test_activation_checkpointing_gives_the_same_gradients(case: str, backbone: Backbone) -> None:
    model = backbone.make()
    adapter = trained(case, model, backbone)

    def gradients(checkpointed: bool) -> Iterator[Tensor]:
        adapter.zero_grad()
        backbone.run_blocks(model, checkpointed=checkpointed).square().mean().backward()
        return (p.grad.clone() for p in adapter.part.parameters() if p.grad is not None)

    plain, again = list(gradients(False)), list(gradients(True))
    assert len(plain) >= len(list(adapter.part.parameters())) - 2  # the patch embedding is outside the blocks
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-8)


@every_backbone
@every_kind
def test_trained_runs_under_autocast_in_the_types_of_the_base(case: str, backbone: Backbone) -> None:
    model = backbone.make()
    types: list[torch.dtype] = []
    for module in model.modules():
        module.register_forward_hook(
            lambda module, args, output: types.append(output.dtype) if isinstance(output, Tensor) else None
        )
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        backbone.run(model)
        base, types[:] = list(types), []
        adapter = make(case, model)
        adapter.enable()
        backbone.run(model)
    assert types == base
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = backbone.run(model).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in adapter.parameters() if p.grad is not None)


def test_every_kind_of_the_table_can_be_made() -> None:
    assert COMPONENTS.keys() == ADAPTER_KINDS.keys() == {kind for kind, _ in KINDS.values()}
    for kind in ADAPTER_KINDS:
        assert Adapter.create(kind, CUBE.make(), **({"rank": 2} if kind == "lora" else {})).kind == kind


def test_identity_follows_what_is_on(tmp_path: Path) -> None:
    model = SAM3D.make()
    adapter = make("ssf", model)
    assert model.adapter_sha256 == ""
    adapter.enable()
    fresh = adapter.sha256
    assert model.adapter_sha256 == fresh
    step(adapter, model, SAM3D)
    seen = {fresh, model.adapter_sha256}
    step(adapter, model, SAM3D)
    seen |= {model.adapter_sha256, adapter.sha256}
    assert len(seen) == 4  # a new name after every change of the tensors
    adapter.save(tmp_path / "a.safetensors")
    assert model.adapter_sha256 == adapter.sha256
    adapter.disable()
    assert model.adapter_sha256 == ""
    adapter.enable()
    assert model.adapter_sha256 == adapter.sha256
    with torch.no_grad():
        SAM3D.run(model)
    assert model.adapter_sha256 == adapter.sha256


def test_identity_follows_tensors_that_are_loaded_while_it_is_on() -> None:
    """Training does this when it restores its best step."""
    model = SAM3D.make()
    adapter = make("ssf", model)
    adapter.enable()
    best = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    known = model.adapter_sha256
    step(adapter, model, SAM3D)
    adapter.load_state_dict(best)
    assert model.adapter_sha256 == adapter.sha256 == known
    adapter.merge()
    with pytest.raises(AdapterError, match="unmerge it"):
        adapter.load_state_dict(best)


def test_one_at_a_time() -> None:
    model = SAM.make()
    one, other = make("ssf", model), make("lora", model)
    one.enable()
    one.enable()
    with pytest.raises(AdapterError, match=r"Another adapter \(of kind 'ssf'\) is switched on"):
        other.enable()
    one.merge()
    with pytest.raises(AdapterError, match="merged into the model"):
        make("ssf", model)
    one.disable()
    other.enable()
    assert adapter_in_use(model) is other


def test_no_blocks_no_adapter() -> None:
    with pytest.raises(AdapterError, match="Linear has no transformer blocks"):
        Adapter.create("ssf", nn.Linear(2, 2))
