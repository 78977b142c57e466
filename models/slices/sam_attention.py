"""SAM's encoder blocks with an exact attention that needs less time and memory.

SAM (Kirillov et al., arXiv:2304.02643) adds two terms to every attention score: q.Rh for the distance in
rows, and q.Rw for the distance in columns. The `segment_anything` package holds several copies of all scores
of a block, (windows x heads, tokens, tokens). The two functions here avoid that:

- `attend_concatenated` makes the bias part of the dot product: it appends [q.Rh, q.Rw] to the query and the
  one-hot row and column of a token to its key. For GPUs, where wider products cost little.
- `attend_in_strips` passes the fused kernel the bias of some queries of one head at a time, which fits into
  the cache. For CPUs, where a product three times as wide costs more than adding the bias.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Number of queries whose bias is computed at a time on a CPU, and of tokens that pass the MLP at a time:
#: their data fits into the cache, and the memory is reused instead of returned to the system.
QUERIES, TOKENS = 1024, 1024


def relative_positions(
    q: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the two parts of the bias, in float32.

    Args:
        q: (B, heads, N, C) unscaled queries of h x w tokens in row order.
        rows: (2h - 1, C) table by distance in rows; the middle entry is distance zero.
        columns: (2w - 1, C) table by distance in columns.
        size: (h, w).

    Returns:
        The bias by the key's row (B, heads, N, h), and by its column (B, heads, N, w).
    """
    h, w = size
    grid = q.float().unflatten(2, size)
    by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, rows.float()[_distances(h, q.device)])
    by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, columns.float()[_distances(w, q.device)])
    return by_row.flatten(2, 3), by_column.flatten(2, 3)


def _distances(n: int, device: torch.device) -> Tensor:
    """Return the indices (n, n), by query and key, into a table of 2n - 1 distances."""
    line = torch.arange(n, device=device)
    return line[:, None] - line + n - 1


def attend_in_strips(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """Compute attention with the bias by_row + by_column, passed to the fused kernel in strips of queries.

    Not for training: all strips share one buffer.

    Args:
        q: (B, heads, N, C) queries.
        k: (B, heads, N, C) keys.
        v: (B, heads, N, C) values.
        by_row: (B, heads, N, h) float32 bias by the key's row, with h x w = N.
        by_column: (B, heads, N, w) float32 bias by the key's column.

    Returns:
        (B, heads, N, C).
    """
    batch, heads, tokens, _ = q.shape
    out = q.new_empty(batch, heads, tokens, v.shape[-1])
    head_count = -(-torch.get_num_threads() // 4)  # a strip is four blocks of the kernel
    strip = by_row.new_empty(batch, head_count, min(QUERIES, tokens), by_row.shape[-1], by_column.shape[-1])
    for n in range(0, heads, head_count):
        for first in range(0, tokens, QUERIES):
            index = slice(None), slice(n, n + head_count), slice(first, first + QUERIES)
            rows, columns = by_row[index], by_column[index]
            bias = strip[:, : rows.shape[1], : rows.shape[2]]
            torch.add(rows[..., :, None], columns[..., None, :], out=bias)
            mask = bias.flatten(3)
            out[index] = F.scaled_dot_product_attention(q[index], k[index[:2]], v[index[:2]], attn_mask=mask)
    return out


def attend_concatenated(q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """Compute the same with the bias as part of the dot product; see `attend_in_strips` for the arguments.

    In a low-precision dtype the bias is split into a sum of two numbers, so that it is as precise as the
    scores.
    """
    h, w = by_row.shape[-1], by_column.shape[-1]
    scale = q.shape[-1] ** -0.5
    bias = torch.cat([by_row, by_column], dim=-1) / scale  # the kernel scales the whole product
    extra = [bias.to(q.dtype)]
    if q.dtype != torch.float32:
        extra.append((bias - extra[0].float()).to(q.dtype))
    row = torch.eye(h, dtype=q.dtype, device=q.device).repeat_interleave(w, dim=0)
    column = torch.eye(w, dtype=q.dtype, device=q.device).repeat(h, 1)
    one_hot = torch.cat([row, column] * len(extra), dim=1).expand(*k.shape[:2], -1, -1)
    query, key = torch.cat([q, *extra], dim=-1), torch.cat([k, one_hot], dim=-1)
    return F.scaled_dot_product_attention(query, key, v, scale=scale)


class SamAttention(nn.Module):
    """The package's attention layers and tables, applied in windows or to the whole slice.

    The package pads windows with zeros before the projection to queries, keys and values, so the projection
    of a padding token is the layer's bias. It is computed once, since padding only has an effect as a key.

    Args:
        attention: attention of a block of `segment_anything`, with relative positions.
        side: side of its windows in tokens, 0 for a global block.
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
        if self.side and x.device.type == "cpu":  # one row of windows at a time fits into the cache
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
            padded = padding.expand(batch, down * side, across * side, -1).clone()
            padded[:, :h, :w] = qkv
            qkv = padded
        qkv = qkv.view(batch, down, side, across, side, -1).transpose(2, 3)
        out = self._attend(qkv.reshape(-1, side, side, 3 * dim))
        out = out.view(batch, down, across, side, side, dim).transpose(2, 3)
        return out.reshape(batch, down * side, across * side, dim)[:, :h, :w]

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, h, w, _ = qkv.shape
        q, k, v = qkv.reshape(batch, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        in_strips = q.device.type == "cpu" and not torch.is_grad_enabled()
        attend = attend_in_strips if in_strips else attend_concatenated
        with torch.autocast(q.device.type, enabled=False):  # autocast would round the bias
            bias = relative_positions(q, self.rel_pos_h, self.rel_pos_w, (h, w))
            return attend(q, k, v, *bias).transpose(1, 2).reshape(batch, h, w, -1)


class SamBlock(nn.Module):
    """Transformer block of SAM's encoder, with the package's layers and their names.

    Args:
        block: a block of `segment_anything.modeling.ImageEncoderViT`.
        adapter: layer parallel to the MLP, as in SAM-Med2D; see `sam_med2d.AdapterLayer`.
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
            mlp_output = torch.cat(parts).view(x.shape)
        else:
            mlp_output = self.mlp(normed)
        return x + mlp_output + self.Adapter(normed) if hasattr(self, "Adapter") else x + mlp_output
