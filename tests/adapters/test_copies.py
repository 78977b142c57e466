"""Trained copies of parameters of the base model."""

from __future__ import annotations

import pytest
import torch

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.copies import ParameterCopies
from medsam_app.errors import AdapterError
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from tests.support.adapter_backbones import CUBE, SAM, SAM3D


def logits(model: Sam3D) -> torch.Tensor:
    """Decode masks for two clicks and a box, which use every part of the prompt encoder."""
    image = torch.randn(1, 1, 16, 16, 32, generator=torch.Generator().manual_seed(5))
    prompts = RoiPrompts(torch.tensor([[[8.0, 8, 8], [2, 2, 2]]]), torch.tensor([[1, 0]]))
    prompts.boxes = torch.tensor([[[4.0, 4, 4], [12, 12, 12]]])
    result = model.decode(model.encode_image(image, torch.ones_like(image, dtype=torch.bool)), prompts)
    return torch.cat([result.logits.flatten(), result.quality.flatten()])


def test_a_whole_decoder_is_trained_and_the_base_keeps_its_own() -> None:
    model = SAM3D.make()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = logits(model)
        adapter = Adapter.create("ssf", model, also=["decoder"])
        adapter.enable()
        assert torch.equal(logits(model), before)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.05)
    logits(model).square().mean().backward()
    idle = [name for name, p in adapter.also.named_parameters() if p.grad is None]
    assert idle == []  # also for parameters of modules that are used by their methods only
    optimizer.step()
    moved = [
        name
        for name, p in model.named_parameters()
        if name in base and not torch.equal(p.detach(), base[name])
    ]
    assert set(moved) <= set(adapter.also.names) and len(moved) > 40
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())
    adapter.disable()
    with torch.no_grad():
        assert torch.equal(logits(model), before)


def test_names_and_modules_name_the_same_once() -> None:
    model = CUBE.make()
    copies = ParameterCopies(model, ["blocks.1.norm1", "norm.bias", "blocks.1.norm1.bias"])
    assert copies.names == ("blocks.1.norm1.weight", "blocks.1.norm1.bias", "norm.bias")
    assert ParameterCopies(model, ["blocks"]).names == tuple(
        name for name, _ in model.named_parameters() if name.startswith("blocks.")
    )


def test_a_name_that_is_not_there_lists_the_closest() -> None:
    with pytest.raises(AdapterError, match=r"called 'block.1'; did you mean .*blocks.1"):
        Adapter.create("ssf", CUBE.make(), also=["block.1"])
    with pytest.raises(AdapterError, match=r"called 'zzz'; its state_dict lists their names\."):
        Adapter.create("ssf", CUBE.make(), also=["zzz"])
    model = CUBE.make()
    with pytest.raises(AdapterError, match=r"called 'norm\.w'"):
        Adapter.create("ssf", model, also=["norm.w"])
    assert all(
        parameter.requires_grad for parameter in model.parameters()
    )  # an error must not freeze the model


def test_a_parameter_in_two_places_has_one_copy() -> None:
    model = CUBE.make()
    model.blocks[1].norm1.weight = model.norm.weight
    adapter = Adapter.create("ssf", model, also=["norm.weight"])
    adapter.enable()
    (copy,) = adapter.also.tensors.values()
    assert model.norm.weight is copy and model.blocks[1].norm1.weight is copy
    adapter.merge()
    adapter.disable()
    assert model.norm.weight is model.blocks[1].norm1.weight is not copy


def test_a_copy_of_an_adapted_layer_is_merged_with_what_is_added_to_it() -> None:
    model = CUBE.make()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = Adapter.create("ssf", model, also=["blocks.0.norm1"])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
        adapter.enable()
        expected = CUBE.run(model)
        adapter.merge()
        torch.testing.assert_close(CUBE.run(model), expected)
    adapter.disable()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_loading_by_assignment_and_saving_parts_while_copies_are_in() -> None:
    model, other = CUBE.make(0), CUBE.make(1)
    adapter = Adapter.create("ssf", model, also=["norm"])
    adapter.enable()
    copy = model.norm.weight
    model.load_state_dict(other.state_dict(), assign=True)
    assert model.norm.weight is copy
    assert torch.equal(model.norm.state_dict(prefix="x.")["x.weight"], other.norm.weight)
    adapter.disable()
    assert torch.equal(model.norm.weight, other.norm.weight)


def test_a_checkpoint_that_does_not_fit_leaves_the_adapter_in_order() -> None:
    model = CUBE.make()
    base = model.norm.weight
    adapter = Adapter.create("ssf", model, also=["norm"])
    adapter.enable()
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({**model.state_dict(), "norm.weight": torch.zeros(3)})
    assert model.norm.weight is adapter.also.tensors["norm/weight"]
    adapter.disable()
    assert model.norm.weight is base


def test_freezing_and_adding_another_adapter_leaves_the_one_in_use_trainable() -> None:
    model = SAM.make()
    one = Adapter.create("ssf", model, also=["mask_decoder"])
    one.enable()
    with torch.no_grad():
        for parameter in one.also.parameters():
            parameter.add_(1)
    other = Adapter.create("ssf", model, also=["mask_decoder"])
    assert one.enabled and not other.enabled
    assert all(parameter.requires_grad for parameter in one.parameters())
    one.disable()
    assert len(other.also.names) == len(list(model.mask_decoder.parameters()))
    for name in other.also.names:
        base = model.get_parameter(name)
        assert torch.equal(other.also.tensors[name.replace(".", "/")], base)
        assert not base.requires_grad
