"""Kinds of adapters: their formulas, attachment points and settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.attachment_points import find_attachment_points
from medsam_app.adapters.table import ADAPTER_KINDS, adapter_kind, check_settings
from medsam_app.errors import AdapterError
from medsam_app.models.layers import Block
from tests.support.adapter_backbones import CUBE, MED2D, SAM, SAM3D, CubeBlock, CubeVit

ROOT = Path(__file__).parents[2]


class One(nn.Module):
    """Return a model of one block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block


def enabled(kind: str, model: nn.Module, **settings: Any) -> Adapter:
    """Return an adapter with random tensors, switched on."""
    adapter = Adapter.create(kind, model, **settings)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    adapter.enable()
    return adapter


@torch.no_grad()
def test_spatial_sees_the_neighbours_along_every_axis() -> None:
    torch.manual_seed(0)
    model = One(CubeBlock(16))
    x = torch.randn(2, 3, 4, 5, 16)
    adapter = Adapter.create("spatial", model, bottleneck=6)
    layer = adapter.part.layers["block"]
    nn.init.normal_(layer.up.weight)
    by_hand = F.relu(layer.conv(F.relu(layer.down(x)).permute(0, 4, 1, 2, 3)))
    expected = model.block(x + layer.up(by_hand.permute(0, 2, 3, 4, 1)))
    adapter.enable()
    torch.testing.assert_close(model.block(x), expected)


@torch.no_grad()
def test_spatial_takes_tokens_in_a_row_by_their_grid() -> None:
    torch.manual_seed(0)
    model = One(Block(16, 2, 4))
    x, grid = torch.randn(2, 60, 16), (3, 4, 5)
    adapter = Adapter.create("spatial", model, bottleneck=6)
    nn.init.normal_(adapter.part.layers["block"].up.weight)
    expected = model.block(adapter.part.layers["block"](x, grid), grid)
    adapter.enable()
    assert torch.equal(model.block(x, grid), expected)
    assert torch.equal(model.block(x, grid=grid), expected)
    alone = One(CubeBlock(16))
    enabled("spatial", alone, bottleneck=4)
    with pytest.raises(AdapterError, match="without their grid"):
        alone.block(x)


@torch.no_grad()
def test_spatial_on_a_slice_is_the_middle_plane_of_its_kernel() -> None:
    torch.manual_seed(0)
    model = SAM.make()
    adapter = enabled("spatial", model, bottleneck=4)
    before = SAM.run(model)
    for layer in adapter.part.layers.values():
        layer.conv.weight[:, :, [0, 2]] = 7
    assert torch.equal(SAM.run(model), before)


@torch.no_grad()
def test_bottlenecks_stand_behind_the_attention_and_beside_the_mlp() -> None:
    torch.manual_seed(0)
    model = One(CubeBlock(16))
    block, x = model.block, torch.randn(2, 3, 4, 5, 16)
    adapter = Adapter.create("bottleneck", model, bottleneck=6, scale=0.3)
    behind, beside = (adapter.part.layers[f"block/{where}"] for where in ("attention", "mlp"))
    nn.init.normal_(behind.up.weight)
    nn.init.normal_(beside.up.weight)
    attended = block.attn(block.norm1(x))
    middle = x + attended + behind.up(F.gelu(behind.down(attended)))
    seen = block.norm2(middle)
    expected = middle + block.mlp(seen) + 0.3 * beside.up(F.gelu(beside.down(seen)))
    adapter.enable()
    torch.testing.assert_close(block(x), expected)


def qkv_of(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the projections of x by a block's attention, split as its code splits them."""
    if isinstance(block, Block):
        attention = block.attention
        k, v = attention.kv(x).unflatten(-1, (2, attention.heads, -1)).unbind(-3)
        return {"q": attention.q(x), "k": k, "v": v, "out": attention.out(x)}
    q, k, v = block.attn.qkv(x).unflatten(-1, (3, 2, -1)).unbind(-3)
    return {"q": q, "k": k, "v": v, "out": block.attn.proj(x)}


@torch.no_grad()
@pytest.mark.parametrize("projection", ["q", "k", "v", "out"])
@pytest.mark.parametrize("make", [lambda: Block(16, 2, 4), lambda: CubeBlock(16)], ids=["kv", "qkv"])
def test_lora_changes_the_projection_that_was_named(projection: str, make: Any) -> None:
    torch.manual_seed(0)
    model = One(make())
    x = torch.randn(3, 16)
    before = qkv_of(model.block, x)
    adapter = enabled("lora", model, rank=3, alpha=6, projections=[projection])
    (layer,) = adapter.part.layers.values()
    for merged in (False, True):
        if merged:
            adapter.merge()
        now = qkv_of(model.block, x)
        torch.testing.assert_close(
            now[projection].flatten(1), before[projection].flatten(1) + 2 * x @ layer.a.T @ layer.b.T
        )
        assert all(torch.equal(now[each], before[each]) for each in before if each != projection)


def test_lora_trains_b_alone_and_keeps_a_orthonormal() -> None:
    model = CUBE.make()
    adapter = Adapter.create("lora", model, rank=3, train="b")
    assert {name.rsplit(".", 1)[1] for name, _ in adapter.named_parameters()} == {"b"}
    for layer in adapter.part.layers.values():
        torch.testing.assert_close(layer.a @ layer.a.T, torch.eye(3))
    whole = Adapter.create("lora", model, rank=3)
    assert whole.state_dict().keys() == adapter.state_dict().keys()


def test_lora_asks_for_projections_that_are_there() -> None:
    class Mute(CubeBlock):
        def __init__(self) -> None:
            super().__init__(16)
            self.mlp = nn.Identity()

    with pytest.raises(AdapterError, match="no projection 'mlp'; they have k, out, q, v"):
        Adapter.create("lora", One(Mute()), projections=["mlp"])


@torch.no_grad()
def test_ssf_scales_and_shifts_linear_layers_norms_and_the_patch_embedding() -> None:
    model = SAM.make()
    encoder = model.image_encoder
    layers = [encoder.blocks[0].mlp.lin1, encoder.blocks[1].attn.qkv, encoder.blocks[1].norm2]
    inputs = [torch.randn(2, 32) for _ in layers] + [torch.randn(1, 3, 32, 32)]
    layers.append(encoder.patch_embed.proj)
    before = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    adapter = Adapter.create("ssf", model)
    for own in adapter.part.layers.values():
        own.scale.fill_(2)
        own.shift.fill_(3)
    adapter.enable()
    for layer, x, old in zip(layers, inputs, before, strict=True):
        torch.testing.assert_close(layer(x), 2 * old + 3)


def test_ssf_leaves_out_the_shift_where_there_is_no_bias_to_hold_it() -> None:
    model = One(CubeBlock(16))
    model.block.attn.qkv = nn.Linear(16, 48, bias=False)
    x = torch.randn(2, 2, 2, 2, 16)
    adapter = enabled("ssf", model)
    assert adapter.part.layers["block/attn/qkv"].shift is None
    with torch.no_grad():
        expected = model.block(x)
        adapter.merge()
        torch.testing.assert_close(model.block(x), expected)


def test_blocks_are_found_in_the_image_encoder_alone() -> None:
    sites = find_attachment_points(SAM3D.make())
    assert [site.name for site in sites.blocks] == ["encoder.blocks.0", "encoder.blocks.1"]
    assert [linear.name for linear in sites.blocks[0].linears] == [
        f"encoder.blocks.0.{name}"
        for name in ("attention.q", "attention.kv", "attention.out", "mlp.0", "mlp.2")
    ]
    assert sites.blocks[0].linears[1].rows == {"k": (0, 32), "v": (32, 64)}
    assert sites.patch_embedding == {}
    for backbone in (SAM, MED2D):
        sites = find_attachment_points(backbone.make())
        assert [site.name for site in sites.blocks] == ["image_encoder.blocks.0", "image_encoder.blocks.1"]
        assert list(sites.patch_embedding) == ["image_encoder.patch_embed.proj"]
        assert {site.width for site in sites.blocks} == {32}
        assert [name.split(".")[-1] for name in sites.blocks[1].norms] == ["norm1", "norm2"]
    both = nn.ModuleDict({"image_encoder": CubeVit(), "memory": CubeVit()})
    assert {site.name.split(".")[0] for site in find_attachment_points(both).blocks} == {"image_encoder"}


def test_a_patch_embedding_of_several_layers_is_left_alone() -> None:
    model = SAM.make()
    model.image_encoder.patch_embed.deep = nn.Conv1d(2, 2, 1)
    assert find_attachment_points(model).patch_embedding == {}


def test_an_attention_that_is_not_understood() -> None:
    model = One(CubeBlock(16))
    model.block.attn = nn.MultiheadAttention(16, 2, bias=False)
    model.block.attn.out_proj = nn.Identity()
    with pytest.raises(AdapterError, match="The attention of block 'block' has no output projection"):
        find_attachment_points(model)


def test_the_table_is_complete_and_free_of_torch() -> None:
    for name, kind in ADAPTER_KINDS.items():
        assert kind.name == name and kind.summary and "arXiv:" in kind.paper
        assert check_settings(name, kind.defaults) == kind.settings()
    assert ADAPTER_KINDS["lora"].defaults == {
        "rank": 8,
        "alpha": 16.0,
        "projections": ["q", "v"],
        "train": "ab",
    }
    script = (
        "import sys, medsam_app.adapters.table, medsam_app.adapters.header;"
        "print([m for m in ('torch', 'monai') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_unknown_kinds_and_settings() -> None:
    with pytest.raises(
        AdapterError, match=r"There is no kind of adapter 'lara'. Did you mean 'lora'\? Known:"
    ):
        adapter_kind("lara")
    with pytest.raises(AdapterError) as caught:
        check_settings("lora", {"ranks": 4, "alpha": -1, "projections": ["q", "q"], "train": "a"})
    message = str(caught.value)
    assert message.startswith("The settings of a 'lora' adapter are wrong: ")
    for part in (
        "there is no 'ranks' (did you mean 'rank'?), known: rank, alpha, projections, train",
        "'alpha' input should be greater than 0 (got -1)",
        "'projections' names a projection twice",
        "'train' input should be 'ab' or 'b' (got 'a')",
    ):
        assert part in message
    with pytest.raises(AdapterError, match="known: none"):
        Adapter.create("ssf", CUBE.make(), rank=4)
    with pytest.raises(AdapterError, match=r"'projections.0' input should be 'q', 'k', 'v', 'out' or 'mlp'"):
        check_settings("lora", {"projections": ["query"]})
