"""TinyViT image encoder of LiteMedSAM, for images of any size.

TinyViT (Wu et al., arXiv:2207.10666) is convolutional at first, and then attends within windows. LiteMedSAM's
variant embeds single pixels and keeps stride 4 to the end. Positions are encoded by a bias per distance
within a window and by depth-wise convolutions, so the network has no resolution of its own.

Maps are (B, C, H, W) with channels last in memory, so that (B, H, W, C) is a view of them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Side lengths of an image in pixels are multiples of this: the stride of the last stages.
STRIDE = 4
#: Channels per attention head.
_HEAD = 32
#: Rows of a map, and tokens, that are computed at a time for prediction on a CPU: their hidden channels fit
#: into the cache, and the memory is reused instead of returned to the system.
_ROWS, _TOKENS = 16, 512


@dataclass(frozen=True, kw_only=True)
class TinyVitSizes:
    """Sizes of the encoder; the defaults are LiteMedSAM's.

    Attributes:
        dims: channels of each stage; the first stage is convolutional, the others attend.
        depths: blocks of each stage.
        windows: side of the attention windows of each stage, in tokens; the first entry has no effect.
        strides: stride of the downsampling after each stage but the last.
        expansion: hidden channels of convolutional blocks and MLPs, as a multiple of their channels.
        out: channels of the output.
    """

    dims: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    strides: tuple[int, int, int] = (2, 2, 1)
    expansion: int = 4
    out: int = 256


class ConvNorm(nn.Module):
    """Convolution `c` without bias and batch norm `bn`; `folded` returns both as one convolution."""

    def __init__(
        self, channels: int, out: int, kernel: int = 1, *, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__()
        groups = channels if depthwise else 1
        self.c = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H / stride, W / stride)."""
        return self.bn(self.c(x))

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """Return one convolution that computes the same as this module in evaluation mode."""
        c, bn = self.c, self.bn
        mean, var = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
        scale = bn.weight.double() / (var.double() + bn.eps).sqrt()
        conv = copy.deepcopy(c)
        conv.weight.copy_(c.weight.double() * scale[:, None, None, None])
        conv.bias = nn.Parameter((bn.bias.double() - mean.double() * scale).to(c.weight.dtype))
        conv.requires_grad_(c.weight.requires_grad)
        return Pointwise(conv) if c.kernel_size == (1, 1) else conv


class Pointwise(nn.Module):
    """A 1x1 convolution as the linear layer that it is, which is faster on a CPU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1), conv.weight.requires_grad)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H, W)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def _in_parts(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def _gelu_(x: Tensor) -> Tensor:
    """Apply GELU in place."""
    return torch.ops.aten.gelu_(x)


class ConvBlock(nn.Module):
    """Inverted bottleneck: expand by 1x1, convolve depth-wise by 3x3, project by 1x1, add."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, depthwise=True)
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if not _in_parts(x):
            y = F.gelu(self.conv2(F.gelu(self.conv1(x))))
            return F.gelu(x + self.conv3(y))
        out, height = torch.empty_like(x), x.shape[2]
        for top in range(0, height, _ROWS):
            bottom = min(top + _ROWS, height)
            first, last = max(top - 1, 0), min(bottom + 1, height)  # with the neighbours of the 3x3 kernel
            y = self.conv2(_gelu_(self.conv1(x[:, :, first:last])))
            y = _gelu_(y[:, :, top - first : bottom - first])
            out[:, :, top:bottom] = _gelu_(self.conv3(y) + x[:, :, top:bottom])
        return out


class Downsample(nn.Module):
    """Change of channels, with a depth-wise convolution of a given stride."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out)
        self.conv2 = ConvNorm(out, out, 3, stride=stride, depthwise=True)
        self.conv3 = ConvNorm(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, H / stride, W / stride)."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Attention within square windows, with a bias per head and distance in rows and columns.

    A map is padded to whole windows. As in the published network, padding holds zeros before the norm and
    takes part in the attention.
    """

    distances: Tensor

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window, self.heads = window, dim // _HEAD
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, window * window))
        line = torch.arange(window)
        apart = (line[:, None] - line).abs()
        rows, columns = apart[:, None, :, None], apart[None, :, None, :]
        self.register_buffer("distances", (rows * window + columns).flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within the windows of (B, H, W, C) tokens; the shape is kept."""
        if not _in_parts(x):
            return self._attend(x)
        return torch.cat([self._attend(rows) for rows in x.split(self.window, dim=1)], dim=1)

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        side, heads = self.window, self.heads
        qkv = self.qkv(self.norm(x))
        down, across = -(-height // side), -(-width // side)
        if (down * side, across * side) != (height, width):
            # The norm of zeros is its bias: padding is the same vector everywhere.
            padding = self.qkv(self.norm.bias)
            padded = qkv.new_empty(batch, down * side, across * side, 3 * channels)
            padded[:, :height, :width] = qkv
            padded[:, height:] = padding
            padded[:, :height, width:] = padding
            qkv = padded
        qkv = qkv.view(batch, down, side, across, side, heads, 3, _HEAD)
        q, k, v = qkv.permute(6, 0, 1, 3, 5, 2, 4, 7).reshape(3, -1, heads, side * side, _HEAD)
        bias = self.attention_biases.index_select(1, self.distances).view(1, heads, side * side, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y = y.view(batch, down, across, heads, side, side, _HEAD).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(batch, down * side, across * side, channels)
        return self.proj(y[:, :height, :width])


class Mlp(nn.Module):
    """Norm and two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) tokens to the same shape."""
        if not _in_parts(x):
            return self.fc2(F.gelu(self.fc1(self.norm(x))))
        parts = [self.fc2(_gelu_(self.fc1(self.norm(part)))) for part in x.flatten(0, -2).split(_TOKENS)]
        return torch.cat(parts).view(x.shape)


class AttentionBlock(nn.Module):
    """Window attention, a depth-wise convolution and an MLP."""

    def __init__(self, dim: int, window: int, hidden: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, window)
        self.local_conv = ConvNorm(dim, dim, 3, depthwise=True)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        tokens = x.permute(0, 2, 3, 1)
        x = self.local_conv((tokens + self.attn(tokens)).permute(0, 3, 1, 2))
        tokens = x.permute(0, 2, 3, 1)
        return (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one stride, and the step to the next stage."""

    def __init__(self, blocks: list[nn.Module], downsample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W) maps."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel's channels."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return y.permute(0, 3, 1, 2)


class TinyVit(nn.Module):
    """Image encoder with the names of the published checkpoint (without their `image_encoder.`).

    Args:
        sizes: sizes of the network.
    """

    def __init__(self, sizes: TinyVitSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or TinyVitSizes()
        first = sizes.dims[0]
        pixels = nn.Sequential(ConvNorm(3, first // 2), nn.GELU(), ConvNorm(first // 2, first))
        self.patch_embed = nn.Sequential(OrderedDict(seq=pixels))
        self.layers = nn.ModuleList()
        for n, (dim, depth, window) in enumerate(zip(sizes.dims, sizes.depths, sizes.windows, strict=True)):
            hidden = sizes.expansion * dim
            blocks: list[nn.Module] = [
                AttentionBlock(dim, window, hidden) if n else ConvBlock(dim, hidden) for _ in range(depth)
            ]
            last = n == len(sizes.strides)
            step = None if last else Downsample(dim, sizes.dims[n + 1], sizes.strides[n])
            self.layers.append(Stage(blocks, step))
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.dims[-1], sizes.out, 1, bias=False),
            ChannelNorm(sizes.out),
            nn.Conv2d(sizes.out, sizes.out, 3, padding=1, bias=False),
            ChannelNorm(sizes.out),
        )
        self.to(memory_format=torch.channels_last)

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the output of every stage, before the step to the next one.

        Args:
            image: (B, 3, H, W) with intensities in 0..1; H and W are multiples of 4.

        Returns:
            (B, 64, H, W), (B, 128, H/2, W/2), (B, 160, H/4, W/4) and (B, 320, H/4, W/4) for LiteMedSAM's
            sizes.

        Raises:
            ValueError: A side is no multiple of 4.
        """
        if any(side % STRIDE or not side for side in image.shape[-2:]):
            raise ValueError(
                f"The image has {image.shape[-2]} x {image.shape[-1]} pixels, but the encoder needs "
                f"multiples of {STRIDE}; pad it at the bottom and on the right."
            )
        x = self.patch_embed(image.contiguous(memory_format=torch.channels_last))
        outputs = []
        for layer in self.layers:
            stage = cast(Stage, layer)
            outputs.append(stage.blocks(x))
            if stage.downsample is not None:
                x = stage.downsample(outputs[-1])
        return outputs

    def forward(self, image: Tensor) -> Tensor:
        """Return the embedding (B, 256, H/4, W/4) of an image; see `stages`."""
        return self.neck(self.stages(image)[-1])


def fold_norms(encoder: nn.Module) -> nn.Module:
    """Replace each `ConvNorm` within a module by one convolution, and return the module.

    The module computes the same in evaluation mode, with fewer steps. Its tensors no longer have the names of
    the checkpoint, so weights are loaded before.
    """
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                setattr(parent, name, child.folded())
    return encoder
