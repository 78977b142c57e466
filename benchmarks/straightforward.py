"""Reference implementation of the 3D backbone, as described in the paper, without optimisation.

It uses the modules and weights of `medsam_app.models`. The volume is enlarged four times, each of its 512
slices goes through SAM's patch embedding, the bias is added to every score, and the whole decoder runs for
every click. Tests compare the two implementations; `benchmarks/backbone.py` times them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medsam_app.models.published import PublishedNetwork
from medsam_app.models.vit3d import WINDOW, Block3d, Vit3d
from medsam_app.models.window_attention import WindowAttention


def embed(vit: Vit3d, volume: Tensor) -> Tensor:
    """Return the tokens (1, H / 4, W / 4, D / 4, C) of a window (1, 1, H, W, D)."""
    enlarged = F.interpolate(volume.expand(-1, 3, -1, -1, -1), scale_factor=4, mode="trilinear")
    slices = vit.patch_embed.proj(enlarged[0].permute(3, 0, 1, 2))
    tokens = vit.slice_embed(slices.permute(1, 2, 3, 0)[None]).permute(0, 2, 3, 4, 1)
    return tokens + vit.positions(tuple(tokens.shape[1:4]))


def scores_bias(attention: WindowAttention, q: Tensor) -> Tensor:
    """Return the bias of every score (N, heads, n, n), for queries (N, heads, n, C)."""
    w = attention.window
    line = torch.arange(w)
    distance = line[:, None] - line + w - 1
    q = q.unflatten(2, (w, w, w))
    total = q.new_zeros(*q.shape[:5], w, w, w)
    tables = (attention.rel_pos_h, attention.rel_pos_w, attention.rel_pos_d)
    for axis, table in enumerate(tables):
        resized = F.interpolate(table.T[None], 2 * w - 1, mode="linear")[0].T[distance]
        query_axis = "xyz"[axis]
        terms = torch.einsum(f"bnxyzc,{query_axis}kc->bnxyzk", q, resized)
        axis_shape = [1, 1, 1]
        axis_shape[axis] = w
        total = total + attention.lr * terms.view(*terms.shape[:5], *axis_shape)
    return total.flatten(5).flatten(2, 4)


def attend(attention: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply attention to windows (N, n, C), with mask (N, n, n)."""
    count, length, dim = x.shape
    qkv = attention.qkv(x).view(count, length, 3, attention.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    scores = scores + scores_bias(attention, q)
    if mask is not None:
        scores = scores + mask[:, None]
    return attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, dim))


def region_mask(grid: tuple[int, int, int]) -> Tensor:
    """Return (windows, n, n): -100 where two tokens of a shifted window come from different regions."""
    regions = torch.zeros(1, *grid, 1)
    number = 0
    spans = (slice(0, -WINDOW), slice(-WINDOW, -WINDOW // 2), slice(-WINDOW // 2, None))
    for h in spans:
        for w in spans:
            for d in spans:
                regions[:, h, w, d] = number
                number += 1
    region_numbers = cut(regions)[..., 0]
    return -100.0 * (region_numbers[:, :, None] != region_numbers[:, None, :]).float()


def cut(x: Tensor) -> Tensor:
    """Cut (B, H, W, D, C) into windows (N, n, C)."""
    w = WINDOW
    for axis in (1, 3, 5):
        x = x.unflatten(axis, (x.shape[axis] // w, w))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, w**3, x.shape[-1])


def join(windows: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Join the windows of one volume; the inverse of `cut`."""
    w = WINDOW
    h, v, d = (n // w for n in grid)
    x = windows.view(h, v, d, w, w, w, -1).permute(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(1, *grid, -1)


def block(layer: Block3d, x: Tensor) -> Tensor:
    """Apply a transformer block to (1, H, W, D, C) tokens."""
    if layer.adapter is not None:
        x = layer.adapter(x)
    grid = tuple(x.shape[1:4])
    y, shift = layer.norm1(x), WINDOW // 2
    if layer.shifted:
        y = torch.roll(y, (-shift,) * 3, dims=(1, 2, 3))
    y = join(attend(layer.attn, cut(y), region_mask(grid) if layer.shifted else None), grid)
    if layer.shifted:
        y = torch.roll(y, (shift,) * 3, dims=(1, 2, 3))
    x = x + y
    return x + layer.mlp(layer.norm2(x))


def levels(vit: Vit3d, volume: Tensor) -> list[Tensor]:
    """Return the levels of tokens, as `Vit3d.forward` does."""
    x, outputs = embed(vit, volume), []
    for number, layer in enumerate(vit.blocks, start=1):
        x = block(layer, x)
        if number % (len(vit.blocks) // 4) == 0:
            outputs.append(x)
    return outputs


def features(network: PublishedNetwork, volume: Tensor) -> list[Tensor]:
    """Return the four features of the published encoder."""
    necks = network.encoder.neck_3d
    outputs = levels(network.encoder, volume)
    return [neck(x.permute(0, 4, 1, 2, 3)) for neck, x in zip(necks, outputs, strict=True)]


def decode(network: PublishedNetwork, image_features: list[Tensor], volume: Tensor, points: Tensor) -> Tensor:
    """Run the prompt encoder and the whole published decoder for one click."""
    decoder = network.decoder
    prompted = [*image_features[:3], network.prompt_encoder(image_features[3], points)]
    heads = [decoder.head(n + 2, feature) for n, feature in enumerate(prompted)]
    small = F.interpolate(volume, scale_factor=0.5, mode="trilinear")
    x = decoder.cls(torch.cat([*heads, small], dim=1))
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
