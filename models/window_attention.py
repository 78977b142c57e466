"""Attention in cubic windows with relative positions on three axes, without a matrix of biases.

SAM adds to the score of a query and a key a term for each axis, `q . R[query's place - key's place]`. That
is a dot product too: with the query's terms for all places of one axis next to q, and a one-hot row of the
key's place next to k, `scaled_dot_product_attention` adds the bias by itself and never holds windows x heads
x 512 x 512 numbers. Where shifted windows hold tokens from two ends of the volume, a query's terms for the
places of the other end are lowered by 100, as the published mask does, at no further width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: What the published mask of shifted windows subtracts.
APART = 100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention within cubic windows.

    After SAM's ViT (arXiv:2304.02643), carried to three axes as in 3DSAM-adapter (arXiv:2306.13465): the
    terms of the axes are multiplied by a learned scalar `lr`, and the query that meets the tables is not
    scaled. Entries carry the published names, so that checkpoints load as they are.

    Args:
        dim: width of the tokens.
        heads: attention heads.
        window: side of a window in tokens.
        table: entries in each table of relative positions; tables of another length than 2 * window - 1
            are resized linearly when they are used.
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
        self.register_buffer("places", _places(window), persistent=False)
        self.register_buffer("columns", _columns(window), persistent=False)

    def forward(self, tokens: Tensor, apart: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            tokens: (N, window^3, dim) tokens of N windows in C order.
            apart: (N, window^3, 3 window) what is added to the terms of the axes, see `apart_in_shifted`.

        Returns:
            (N, window^3, dim).
        """
        count, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(count, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        terms = (q @ (self.lr * self._tables()).to(q.dtype).T).take_along_dim(self.columns, dim=-1)
        if apart is not None:
            terms = terms + apart[:, None]
        width = q.shape[-1]
        q = torch.cat([q * width**-0.5, terms.to(q.dtype)], dim=-1)
        k = torch.cat([k, self.places.to(k.dtype).expand(count, self.heads, -1, -1)], dim=-1)
        # Equal widths let torch take its flash kernels; the columns of zeros are cut off again.
        v = F.pad(v, (0, q.shape[-1] - width))
        x = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]
        return self.proj(x.transpose(1, 2).reshape(count, length, dim))

    def _tables(self) -> Tensor:
        """(3 (2 window - 1), dim / heads): the tables of the three axes one after another."""
        length = 2 * self.window - 1
        tables = torch.stack([self.rel_pos_h, self.rel_pos_w, self.rel_pos_d])
        if tables.shape[1] != length:
            tables = F.interpolate(tables.transpose(1, 2), size=length, mode="linear").transpose(1, 2)
        return tables.flatten(0, 1)


def _axes(window: int) -> Tensor:
    """(window^3, 3) place of each token on the three axes."""
    line = torch.arange(window)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).flatten(0, 2)


def _places(window: int) -> Tensor:
    """(window^3, 3 window) one-hot rows of each key's place on each axis."""
    return F.one_hot(_axes(window), window).flatten(1).float()


def _columns(window: int) -> Tensor:
    """(1, 1, window^3, 3 window) which entry of the tables a query meets for each place of a key."""
    distance = _axes(window)[:, :, None] - torch.arange(window) + window - 1
    return (distance + torch.arange(3)[:, None] * (2 * window - 1)).flatten(1)[None, None]


def apart_in_shifted(grid: tuple[int, int, int], window: int, device: torch.device) -> Tensor:
    """Which places of its window a query must not see once windows are shifted by half their side.

    The last window along an axis then holds the volume's end in its first half and the volume's start,
    rolled around, in its second half.

    Args:
        grid: tokens along the three axes, multiples of the window.
        window: side of a window.
        device: where the result lies.

    Returns:
        (N, window^3, 3 window): -100 for places of the other half on axes where the window is the last.
    """
    half = torch.arange(window, device=device) >= window // 2
    other = -APART * (half[:, None] != half).float()
    axes = _axes(window).to(device)
    counts = [n // window for n in grid]
    last = torch.zeros(*counts, 3, dtype=torch.bool, device=device)
    for axis in range(3):
        last.select(axis, counts[axis] - 1)[..., axis] = True
    per_axis = [other[axes[:, axis]] * last[..., axis].flatten()[:, None, None] for axis in range(3)]
    return torch.cat(per_axis, dim=-1)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, D, C) into (B * windows, window^3, C)."""
    b, h, w, d, c = x.shape
    x = x.view(b, h // window, window, w // window, window, d // window, window, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, c)


def from_windows(windows: Tensor, window: int, grid: tuple[int, int, int]) -> Tensor:
    """The inverse of `to_windows`: (B, H, W, D, C)."""
    h, w, d = (n // window for n in grid)
    x = windows.view(-1, h, w, d, window, window, window, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, *grid, windows.shape[-1])
