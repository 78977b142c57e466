"""Attachment points of adapters: transformer blocks, found by their structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from medsam_app.errors import AdapterError

#: Names of the linear layers of an attention, and which projections lie in their rows, in order.
ATTENTION_LAYERS = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    "q": ("q",),
    "k": ("k",),
    "v": ("v",),
    "proj": ("out",),
    "out": ("out",),
}


@dataclass(frozen=True)
class LinearSite:
    """A linear layer.

    Attributes:
        name: its dotted name in the model.
        layer: the layer.
        rows: for each of its projections ('q', 'k', 'v', 'out' or 'mlp') the rows [start, stop) of the
            weight, in the order in which they lie there.
    """

    name: str
    layer: nn.Linear
    rows: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class BlockSite:
    """A transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        name: its dotted name in the model.
        block, attention, mlp: the modules.
        width: channels of the tokens.
        linears: its linear layers.
        norms: its two norms by their dotted names.
    """

    name: str
    block: nn.Module
    attention: nn.Module
    mlp: nn.Module
    width: int
    linears: tuple[LinearSite, ...]
    norms: dict[str, nn.Module]


@dataclass(frozen=True)
class Sites:
    """All places of a model.

    Attributes:
        blocks: the blocks of the image encoder, in order.
        patch_embedding: the convolution that makes the tokens, by its dotted name; empty where the tokens
            are made in another way.
    """

    blocks: tuple[BlockSite, ...]
    patch_embedding: dict[str, nn.Conv2d | nn.Conv3d]

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self.blocks[0].linears[0].layer.weight.device


def find_sites(model: nn.Module) -> Sites:
    """Return the transformer blocks of a model's image encoder, under any name.

    A block is a module with `norm1`, `norm2`, `mlp` and `attn` or `attention`: the blocks of SAM, of its
    3D and 2D offspring, and of `sam3d_tiny`. Where some lie in a module called `image_encoder` or
    `encoder`, only those are taken.

    Raises:
        AdapterError: there are none, or their linear layers cannot be distinguished.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _is_block(module)]
    names = [name for name in names if {"image_encoder", "encoder"} & set(name.split("."))] or names
    if not names:
        raise AdapterError(
            f"{type(model).__name__} has no transformer blocks that an adapter can be added to; wanted are "
            "modules with norm1, norm2, mlp and attn (or attention), as in SAM's image encoder."
        )
    blocks = tuple(_block_site(name, modules[name]) for name in names)
    embeddings = [name for name in modules if name.split(".")[-1] == "patch_embed"]
    return Sites(
        blocks, {name: conv for each in embeddings for name, conv in _only_layer(each, modules[each])}
    )


def _is_block(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    return {"norm1", "norm2", "mlp"} <= set(parts) and ("attn" in parts or "attention" in parts)


def _block_site(name: str, block: nn.Module) -> BlockSite:
    parts = dict(block.named_children())
    label = "attn" if "attn" in parts else "attention"
    attention, mlp = parts[label], parts["mlp"]
    prefix = f"{name}." if name else ""
    linears = [*_attention_linears(f"{prefix}{label}", attention), *_mlp_linears(f"{prefix}mlp", mlp)]
    out = next((site for site in linears if "out" in site.rows), None)
    if out is None:
        raise AdapterError(
            f"The attention of block '{name}' has no output projection that is a linear layer called 'proj' "
            "or 'out'; adapters cannot be added to it."
        )
    norms = {f"{prefix}{norm}": parts[norm] for norm in ("norm1", "norm2")}
    return BlockSite(name, block, attention, mlp, out.layer.out_features, tuple(linears), norms)


def _attention_linears(prefix: str, attention: nn.Module) -> Iterator[LinearSite]:
    for name, layer in attention.named_children():
        if isinstance(layer, nn.Linear) and name in ATTENTION_LAYERS:
            roles = ATTENTION_LAYERS[name]
            step = layer.out_features // len(roles)
            rows = {role: (n * step, (n + 1) * step) for n, role in enumerate(roles)}
            yield LinearSite(f"{prefix}.{name}", layer, rows)


def _mlp_linears(prefix: str, mlp: nn.Module) -> Iterator[LinearSite]:
    for name, layer in mlp.named_modules(prefix=prefix):
        if isinstance(layer, nn.Linear):
            yield LinearSite(name, layer, {"mlp": (0, layer.out_features)})


def _only_layer(prefix: str, embedding: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Conv3d]]:
    """Yield the convolution of a patch embedding that has no other layer.

    A folded one lends its weights to another convolution and is never called itself.
    """
    if getattr(embedding, "folded", False):
        return
    owners = [
        (name, layer)
        for name, layer in embedding.named_modules(prefix=prefix)
        if dict(layer.named_parameters(recurse=False))
    ]
    if len(owners) == 1 and isinstance(owners[0][1], nn.Conv2d | nn.Conv3d):
        yield owners[0][0], owners[0][1]
