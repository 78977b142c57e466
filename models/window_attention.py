"""Attention in cubic windows with relative positions on three axes.

SAM adds a term per axis to the score of a query and a key: `q . R[query position - key position]`. This is a
dot product, too. The query's terms for all positions on each axis are appended to q, and the one-hot position
of the key is appended to k. Then `scaled_dot_product_attention` includes the bias and never holds windows x
heads x 512 x 512 numbers. A shifted window may hold tokens from two ends of the volume. A query's terms for
positions at the other end are then lowered by 100, as by the published mask, which needs no additional
channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Number that the published mask of shifted windows subtracts from scores.
SEPARATION = 100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention within cubic windows.

    After SAM's ViT (arXiv:2304.02643), extended to three axes as in 3DSAM-adapter (arXiv:2306.13465): the
    terms of the axes are multiplied by a learned scalar `lr`, and are computed from the unscaled query.
    Tensors have the published names, so checkpoints load unchanged.

    Args:
        dim: channels of the tokens.
        heads: attention heads.
        window: side of a window in tokens.
        table: number of entries in each table of relative positions. Tables of another length than
            2 * window - 1 are resized linearly on use.
    """

    places: Tensor
    columns: Tensor

    def __init__(self, dim: int, heads: int, *, window: int, table: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(table, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(table, dim // heads))
        self.rel_pos_d = nn.Parameter(torch.zeros(table, dim // heads))
        self.lr = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("places", _one_hot_positions(window), persistent=False)
        self.register_buffer("columns", _table_indices(window), persistent=False)

    def forward(self, tokens: Tensor, separation: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            tokens: (N, window^3, dim) tokens of N windows in C order.
            separation: (N, window^3, 3 window) bias added to the terms of the axes, see `separation_bias`.

        Returns:
            (N, window^3, dim).
        """
        count, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(count, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        biases = (q @ (self.lr * self._tables()).to(q.dtype).T).take_along_dim(self.columns, dim=-1)
        if separation is not None:
            biases = biases + separation[:, None]
        width = q.shape[-1]
        q = torch.cat([q * width**-0.5, biases.to(q.dtype)], dim=-1)
        k = torch.cat([k, self.places.to(k.dtype).expand(count, self.heads, -1, -1)], dim=-1)
        # Equal widths let torch use its flash kernels; the columns of zeros are cut off afterwards.
        v = F.pad(v, (0, q.shape[-1] - width))
        x = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]
        return self.proj(x.transpose(1, 2).reshape(count, length, dim))

    def _tables(self) -> Tensor:
        """Return the tables of the three axes, concatenated: (3 (2 window - 1), dim / heads)."""
        length = 2 * self.window - 1
        tables = torch.stack([self.rel_pos_h, self.rel_pos_w, self.rel_pos_d])
        if tables.shape[1] != length:
            tables = F.interpolate(tables.transpose(1, 2), size=length, mode="linear").transpose(1, 2)
        return tables.flatten(0, 1)


def _axis_positions(window: int) -> Tensor:
    """Return the position of each token on the three axes, (window^3, 3)."""
    line = torch.arange(window)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).flatten(0, 2)


def _one_hot_positions(window: int) -> Tensor:
    """Return the one-hot position of each key on each axis, (window^3, 3 window)."""
    return F.one_hot(_axis_positions(window), window).flatten(1).float()


def _table_indices(window: int) -> Tensor:
    """Return the index into the tables by query and key position, (1, 1, window^3, 3 window)."""
    distance = _axis_positions(window)[:, :, None] - torch.arange(window) + window - 1
    return (distance + torch.arange(3)[:, None] * (2 * window - 1)).flatten(1)[None, None]


def separation_bias(grid: tuple[int, int, int], window: int, device: torch.device) -> Tensor:
    """Return the bias that separates the two ends of the volume in windows shifted by half their side.

    The last window along an axis holds the end of the volume in its first half, and the start of the volume,
    rolled around, in its second half.

    Args:
        grid: number of tokens along the three axes, multiples of `window`.
        window: side of a window in tokens.
        device: device of the result.

    Returns:
        (N, window^3, 3 window): -100 for positions in the other half, on axes along which the window is the
        last.
    """
    second_half = torch.arange(window, device=device) >= window // 2
    bias = -SEPARATION * (second_half[:, None] != second_half).float()
    axes = _axis_positions(window).to(device)
    counts = [n // window for n in grid]
    is_last = torch.zeros(*counts, 3, dtype=torch.bool, device=device)
    for axis in range(3):
        is_last.select(axis, counts[axis] - 1)[..., axis] = True
    per_axis = [bias[axes[:, axis]] * is_last[..., axis].flatten()[:, None, None] for axis in range(3)]
    return torch.cat(per_axis, dim=-1)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, D, C) into (B * windows, window^3, C)."""
    b, h, w, d, c = x.shape
    x = x.view(b, h // window, window, w // window, window, d // window, window, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, c)


def from_windows(windows: Tensor, window: int, grid: tuple[int, int, int]) -> Tensor:
    """Join windows to (B, H, W, D, C); the inverse of `to_windows`."""
    h, w, d = (n // window for n in grid)
    x = windows.view(-1, h, w, d, window, window, window, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *grid, windows.shape[-1])
