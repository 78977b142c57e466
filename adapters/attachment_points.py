"""Attachment points of adapters: transformer blocks and their linear layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from medsam_app.errors import AdapterError

#: Names of an attention's linear layers, with the projections in their rows, in order.
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
class LinearPoint:
    """Linear layer of a transformer block.

    Attributes:
        name: dotted name of the layer in the model.
        layer: the layer.
        rows: for each of its projections ('q', 'k', 'v', 'out' or 'mlp') the rows [start, stop) of the
            weight, in ascending order.
    """

    name: str
    layer: nn.Linear
    rows: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class BlockPoint:
    """Transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        name: dotted name of the block in the model.
        block: the block.
        attention: its attention module.
        mlp: its MLP.
        width: channels of the tokens.
        linears: its linear layers.
        norms: its two norms by their dotted names.
    """

    name: str
    block: nn.Module
    attention: nn.Module
    mlp: nn.Module
    width: int
    linears: tuple[LinearPoint, ...]
    norms: dict[str, nn.Module]


@dataclass(frozen=True)
class AttachmentPoints:
    """Modules of a model that adapters can be attached to.

    Attributes:
        blocks: transformer blocks of the image encoder, in order.
        patch_embedding: convolution that computes the tokens, by its dotted name; empty if the tokens are
            computed in another way.
    """

    blocks: tuple[BlockPoint, ...]
    patch_embedding: dict[str, nn.Conv2d | nn.Conv3d]

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self.blocks[0].linears[0].layer.weight.device


def find_attachment_points(model: nn.Module) -> AttachmentPoints:
    """Find the transformer blocks of a model's image encoder by their structure.

    A block is a module with `norm1`, `norm2`, `mlp` and `attn` or `attention`, as in SAM, the 2D and 3D
    models derived from it, and `sam3d_tiny`. If any block is inside a module called `image_encoder` or
    `encoder`, blocks outside such modules are ignored.

    Raises:
        AdapterError: The model has no such blocks, or a block's output projection cannot be identified.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _is_block(module)]
    names = [name for name in names if {"image_encoder", "encoder"} & set(name.split("."))] or names
    if not names:
        raise AdapterError(
            f"{type(model).__name__} has no transformer blocks that an adapter can be added to; wanted are "
            "modules with norm1, norm2, mlp and attn (or attention), as in SAM's image encoder."
        )
    blocks = tuple(_block_point(name, modules[name]) for name in names)
    embeddings = [name for name in modules if name.split(".")[-1] == "patch_embed"]
    return AttachmentPoints(
        blocks,
        {
            name: conv
            for embedding in embeddings
            for name, conv in _sole_convolution(embedding, modules[embedding])
        },
    )


def _is_block(module: nn.Module) -> bool:
    children = dict(module.named_children())
    return {"norm1", "norm2", "mlp"} <= set(children) and ("attn" in children or "attention" in children)


def _block_point(name: str, block: nn.Module) -> BlockPoint:
    children = dict(block.named_children())
    attention_name = "attn" if "attn" in children else "attention"
    attention, mlp = children[attention_name], children["mlp"]
    prefix = f"{name}." if name else ""
    linears = [
        *_attention_linears(f"{prefix}{attention_name}", attention),
        *_mlp_linears(f"{prefix}mlp", mlp),
    ]
    out = next((linear for linear in linears if "out" in linear.rows), None)
    if out is None:
        raise AdapterError(
            f"The attention of block '{name}' has no output projection that is a linear layer called 'proj' "
            "or 'out'; adapters cannot be added to it."
        )
    norms = {f"{prefix}{norm}": children[norm] for norm in ("norm1", "norm2")}
    return BlockPoint(name, block, attention, mlp, out.layer.out_features, tuple(linears), norms)


def _attention_linears(prefix: str, attention: nn.Module) -> Iterator[LinearPoint]:
    for name, layer in attention.named_children():
        if isinstance(layer, nn.Linear) and name in ATTENTION_LAYERS:
            projections = ATTENTION_LAYERS[name]
            step = layer.out_features // len(projections)
            rows = {
                projection: (index * step, (index + 1) * step) for index, projection in enumerate(projections)
            }
            yield LinearPoint(f"{prefix}.{name}", layer, rows)


def _mlp_linears(prefix: str, mlp: nn.Module) -> Iterator[LinearPoint]:
    for name, layer in mlp.named_modules(prefix=prefix):
        if isinstance(layer, nn.Linear):
            yield LinearPoint(name, layer, {"mlp": (0, layer.out_features)})


def _sole_convolution(prefix: str, embedding: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Conv3d]]:
    """Yield the convolution of a patch embedding, if it is the only layer with parameters.

    A folded patch embedding is skipped: its weights enter another convolution, and it is never called.
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
