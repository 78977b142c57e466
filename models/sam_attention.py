"""SAM's image encoder on the package's own weights, with an exact attention that is quicker and smaller.

SAM (Kirillov et al., arXiv:2304.02643) adds to every score q.Rh by the distance in rows and q.Rw by the
distance in columns. The `segment_anything` package holds all scores of a block at once, (windows x heads,
tokens, tokens), several times over. Neither way here does:

- `attend_beside` makes the bias a part of the dot product: [q.Rh, q.Rw] stands next to the query, the one-hot
  row and column of a token next to its key. For GPUs, where wider products cost little.
- `attend_in_strips` gives the fused kernel the bias of some queries of one head at a time, which fits the
  cache. For CPUs, where a product three times as wide costs more than adding the bias.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Queries whose bias is made at a time on a CPU, and tokens that pass the MLP at a time: what they hold stays
#: in the cache, and memory is used again for the next instead of given back.
QUERIES, TOKENS = 1024, 1024


def relative_positions(
    q: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The two parts of the bias, in float32.

    Args:
        q: (B, heads, N, C) queries of h x w tokens in row order, not scaled.
        rows, columns: (2h - 1, C) and (2w - 1, C) tables by distance, the middle for distance zero.
        size: (h, w).

    Returns:
        (B, heads, N, h) by the key's row and (B, heads, N, w) by its column.
    """
    h, w = size
    grid = q.float().unflatten(2, size)
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rows.float()[_distances(h, q.device)])
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, columns.float()[_distances(w, q.device)])
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def _distances(n: int, device: torch.device) -> Tensor:
    """(n, n) index into a table of 2n - 1 distances, for each query (first) and key."""
    line = torch.arange(n, device=device)
    return line[:, None] - line + n - 1


def attend_in_strips(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """Attention with the bias by_row + by_column, which the fused kernel is given a strip at a time.

    Not for training: all strips are made in the same memory.

    Args:
        q, k, v: (B, heads, N, C).
        by_row, by_column: (B, heads, N, h) and (B, heads, N, w) with h x w = N, float32.

    Returns:
        (B, heads, N, C).
    """
    batch, heads, tokens, _ = q.shape
    out = q.new_empty(batch, heads, tokens, v.shape[-1])
    together = -(-torch.get_num_threads() // 4)  # a strip is four blocks of the kernel
    strip = by_row.new_empty(batch, together, min(QUERIES, tokens), by_row.shape[-1], by_column.shape[-1])
    for n in range(0, heads, together):
        for first in range(0, tokens, QUERIES):
            at = slice(None), slice(n, n + together), slice(first, first + QUERIES)
            rows, columns = by_row[at], by_column[at]
            bias = strip[:, : rows.shape[1], : rows.shape[2]]
            torch.add(rows[..., :, None], columns[..., None, :], out=bias)
            mask = bias.flatten(3)
            out[at] = F.scaled_dot_product_attention(q[at], k[at[:2]], v[at[:2]], attn_mask=mask)
    return out


def attend_beside(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """The same with the bias as a part of the dot product; arguments as for `attend_in_strips`.

    In a type of few bits the bias is written as a sum of two numbers of that type, so that it is as exact
    as the scores are.
    """
    h, w = by_row.shape[-1], by_column.shape[-1]
    scale = q.shape[-1] ** -0.5
    bias = torch.cat([by_row, by_column], dim=-1) / scale  # the kernel scales the whole product
    beside = [bias.to(q.dtype)]
    if q.dtype != torch.float32:
        beside.append((bias - beside[0].float()).to(q.dtype))
    row = torch.eye(h, dtype=q.dtype, device=q.device).repeat_interleave(w, dim=0)
    column = torch.eye(w, dtype=q.dtype, device=q.device).repeat(h, 1)
    where = torch.cat([row, column] * len(beside), dim=1).expand(*k.shape[:2], -1, -1)
    query, key = torch.cat([q, *beside], dim=-1), torch.cat([k, where], dim=-1)
    return F.scaled_dot_product_attention(query, key, v, scale=scale)


class SamAttention(nn.Module):
    """The package's attention with its own layers and tables, within windows or over the whole picture.

    Padding is worth computing nowhere but as keys, where it counts: the package pads with zeros before the
    projection to queries, keys and values, so that a padding token is that layer's bias.

    Args:
        attention: a block's attention of `segment_anything`, with relative positions.
        side: of its windows in tokens, 0 for a global block.
    """

    def __init__(self, attention: nn.Module, side: int) -> None:
        super().__init__()
        package = cast(Any, attention)
        self.qkv, self.proj = package.qkv, package.proj
        self.rel_pos_h, self.rel_pos_w = package.rel_pos_h, package.rel_pos_w
        self.num_heads: int = package.num_heads
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) normed tokens to the same shape."""
        if self.side and x.device.type == "cpu":  # a row of windows at a time stays in the cache
            parts = [self._in_windows(part) for part in x.split(self.side, dim=1)]
            attended = torch.cat(parts, dim=1)
        elif self.side:
            attended = self._in_windows(x)
        else:
            attended = self._attend(self.qkv(x))
        return self.proj(attended)

    def _in_windows(self, x: Tensor) -> Tensor:
        side, (batch, h, w, dim) = self.side, x.shape
        down, across = -(-h // side), -(-w // side)
        qkv = self.qkv(x)
        if (h, w) != (down * side, across * side):
            padding = self.qkv(x.new_zeros(dim))
            whole = padding.expand(batch, down * side, across * side, -1).clone()
            whole[:, :h, :w] = qkv
            qkv = whole
        qkv = qkv.view(batch, down, side, across, side, -1).transpose(2, 3)
        out = self._attend(qkv.reshape(-1, side, side, 3 * dim))
        out = out.view(batch, down, across, side, side, dim).transpose(2, 3)
        return out.reshape(batch, down * side, across * side, dim)[:, :h, :w]

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, h, w, _ = qkv.shape
        q, k, v = qkv.reshape(batch, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        lean = q.device.type == "cpu" and not torch.is_grad_enabled()
        attend = attend_in_strips if lean else attend_beside
        with torch.autocast(q.device.type, enabled=False):  # would round the bias
            bias = relative_positions(q, self.rel_pos_h, self.rel_pos_w, (h, w))
            return attend(q, k, v, *bias).transpose(1, 2).reshape(batch, h, w, -1)


class SamBlock(nn.Module):
    """A transformer block of SAM's encoder: the package's layers under the same names.

    Args:
        block: a block of `segment_anything.modeling.ImageEncoderViT`.
        adapter: added parallel to the MLP under its published name, as in SAM-Med2D; see
    """

    def __init__(self, block: nn.Module, adapter: nn.Module | None = None) -> None:
        super().__init__()
        package = cast(Any, block)
        self.norm1, self.norm2, self.mlp = package.norm1, package.norm2, package.mlp
        self.attn = SamAttention(package.attn, package.window_size)
        if adapter is not None:
            self.Adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) tokens to the same shape."""
        x = x + self.attn(self.norm1(x))
        normed = self.norm2(x)
        if x.device.type == "cpu":
            parts = [self.mlp(part) for part in normed.flatten(0, 2).split(TOKENS)]
            after = torch.cat(parts).view(x.shape)
        else:
            after = self.mlp(normed)
        return x + after + self.Adapter(normed) if hasattr(self, "Adapter") else x + after
