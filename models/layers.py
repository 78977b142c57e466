"""Building blocks of the 3D SAM: norms, convolutions, attention, adapter.

Tensors are channels first, (B, C, X, Y, Z), or token sequences, (B, N, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpatialAdapter(nn.Module):
    """Bottleneck with a depth-wise 3x3x3 convolution between its two projections.

    This is the light adapter of 3DSAM-adapter (Gong et al., arXiv:2306.13465). It mixes each token with its
    neighbours in space, which also encodes the token's position. The up-projection starts at zero, so an
    untrained adapter has no effect.

    Args:
        dim: channels of the tokens.
        bottleneck: channels between the projections.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Adapt (B, N, C) tokens of a grid of N = X * Y * Z positions in C order; the shape is kept."""
        x = F.relu(self.down(tokens))
        x = x.transpose(1, 2).unflatten(2, grid)
        x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)
        return tokens + self.up(x)


class Attention(nn.Module):
    """Multi-head attention from query tokens to memory tokens, by `scaled_dot_product_attention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, memory: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attend from (B, N, C) to (B, M, C); `keep` (B, M) is False for padding."""
        q = self.q(query).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None, :]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(x.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        last = nn.Linear(hidden, out or dim)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), last)

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        layer = self[2]
        assert isinstance(layer, nn.Linear)
        return layer


class Block(nn.Module):
    """Transformer block preceded by a spatial adapter, as in 3DSAM-adapter."""

    def __init__(self, dim: int, heads: int, adapter_dim: int) -> None:
        super().__init__()
        self.adapter = SpatialAdapter(dim, adapter_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Apply the block to (B, T, C) tokens on a grid of T = X * Y * Z positions."""
        tokens = self.adapter(tokens, grid)
        x = self.norm1(tokens)
        tokens = tokens + self.attention(x, x)
        return tokens + self.mlp(self.norm2(tokens))


class TwoWayBlock(nn.Module):
    """SAM's two-way block: tokens attend to themselves and to the image, the image to the tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads)
        self.to_image = Attention(dim, heads)
        self.to_tokens = Attention(dim, heads)
        self.mlp = Mlp(dim, 2 * dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))

    def forward(self, tokens: Tensor, image: Tensor, position: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Update (B, T, C) tokens and (B, N, C) image features; `keep` (B, T) is False for padding tokens."""
        x = self.norms[0](tokens)
        tokens = tokens + self.self_attention(x, x, keep)
        tokens = tokens + self.to_image(self.norms[1](tokens), self.norms[2](image) + position)
        tokens = tokens + self.mlp(self.norms[3](tokens))
        image = image + self.to_tokens(self.norms[2](image) + position, self.norms[4](tokens), keep)
        return tokens, image


class Conv3d(nn.Conv3d):
    """3D convolution that uses oneDNN for a single window, too.

    On the CPU torch computes float32 convolutions of small inputs of batch size one with a slower routine
    (its rule counts the first four of five sizes). Calling oneDNN directly gives the same numbers in less
    time; `benchmarks/convolution.py` measures the difference.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        direct = input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        direct = direct and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        direct = direct and not torch.compiler.is_compiling()
        if direct and torch.backends.mkldnn.is_available():
            return torch.ops.aten.mkldnn_convolution(
                input, weight, bias, self.padding, self.stride, self.dilation, self.groups
            )
        return super()._conv_forward(input, weight, bias)


class ConvNorm(nn.Sequential):
    """3x3x3 convolution, group norm with eight channels per group, and SiLU."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__(
            Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(max(1, channels_out // 8), channels_out),
            nn.SiLU(),
        )


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions to (B, C, X, Y, Z) features and add the input."""
        return x + self.second(self.first(x))


def resize_like(x: Tensor, target: Tensor) -> Tensor:
    """Resize (B, C, X, Y, Z) trilinearly to the spatial size of `target`."""
    return F.interpolate(x, size=target.shape[2:], mode="trilinear", align_corners=False)


def depth_to_space(x: Tensor) -> Tensor:
    """Rearrange (B, 8 C, X, Y, Z) to (B, C, 2X, 2Y, 2Z)."""
    b, c, i, j, k = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // 8, 2 * i, 2 * j, 2 * k)
