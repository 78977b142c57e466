"""Image encoder of the small 3D SAM, and its intensity normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.layers import Block, Conv3d, ConvNorm, Residual, resize_like

#: Approximate number of voxels that the percentiles and the histogram of a window are computed from.
_SAMPLES = 32768
#: Support points of the cumulative histogram.
_KNOTS = 64


@dataclass
class Embedding:
    """Output of the encoder for one window; independent of prompts.

    Attributes:
        image: (B, 2, X, Y, Z) normalised intensities in [-1, 1], see `normalise`.
        valid: (B, 1, X, Y, Z) booleans, inside the volume.
        fine: features at stride 2.
        middle: features at stride 4.
        coarse: features at stride 8.
    """

    image: Tensor
    valid: Tensor
    fine: Tensor
    middle: Tensor
    coarse: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the embedding."""
        return (self.image, self.valid, self.fine, self.middle, self.coarse)

    @cached_property
    def smooth(self) -> Tensor:
        """Mean intensities of 3x3x3 voxels, (B, 2, X, Y, Z)."""
        return F.avg_pool3d(self.image, 3, 1, 1, count_include_pad=False)

    @cached_property
    def half(self) -> tuple[Tensor, Tensor]:
        """`image` and `valid` at half the resolution."""
        return F.avg_pool3d(self.image, 2), F.max_pool3d(self.valid.float(), 2) > 0

    @property
    def nbytes(self) -> int:
        """Memory in bytes, including `smooth` and `half`, which are cached on first use."""
        derived = 9 * self.image.nbytes // 8 + self.valid.nbytes // 8
        return derived + sum(t.nbytes for t in self.tensors)


def normalise(image: Tensor, valid: Tensor) -> Tensor:
    """Return two views of a window's intensities, both in [-1, 1].

    The first view is scaled between the 0.5 and 99.5 percentiles of the voxels inside the volume. The second
    is the first after histogram equalisation, which shows soft tissue with contrast even next to bone or air.
    Voxels outside the volume are -1.

    Args:
        image: (B, 1, X, Y, Z) raw intensities, any unit.
        valid: (B, 1, X, Y, Z) booleans, inside the volume.

    Returns:
        The views, (B, 2, X, Y, Z) float32.
    """
    views = []
    for values, inside in zip(image.float(), valid, strict=True):
        known = values[inside]
        if known.numel() == 0:
            views.append(torch.full_like(values, -1.0).expand(2, *values.shape[1:]))
            continue
        known = known[:: max(1, known.numel() // _SAMPLES)]
        low, high = torch.quantile(known, torch.tensor([0.005, 0.995], device=known.device))
        span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
        linear = ((values - low) / span).clamp(0, 1)
        share = torch.linspace(0, 1, _KNOTS, device=known.device)
        knots = torch.quantile(((known - low) / span).clamp(0, 1), share)
        # Equal knots (air in CT, zero padding in MR) would make the interpolation discontinuous.
        knots = knots + share * 1e-4
        right = torch.searchsorted(knots, linear.contiguous()).clamp(1, _KNOTS - 1)
        a, b = knots[right - 1], knots[right]
        equal = (share[right - 1] + (linear - a) / (b - a) * share[1]).clamp(0, 1)
        views.append(torch.where(inside, torch.cat([linear, equal]) * 2 - 1, -1.0))
    return torch.stack(views)


class ImageEncoder(nn.Module):
    """Convolutions down to stride 8, transformer blocks with spatial adapters, and a top-down neck.

    There are no position embeddings: the adapters' depth-wise convolutions encode positions implicitly, so
    the sides of a window can be any multiples of 8.

    Args:
        widths: channels at strides 1, 2, 4 and 8.
        depth: number of transformer blocks.
        heads: attention heads.
        adapter_dim: channels of the spatial adapters' bottleneck.
    """

    def __init__(
        self, *, widths: tuple[int, int, int, int], depth: int, heads: int, adapter_dim: int
    ) -> None:
        super().__init__()
        full, fine, middle, coarse = widths
        self.stem = ConvNorm(2, full)
        self.to_fine = nn.Sequential(ConvNorm(full, fine, stride=2), Residual(fine))
        self.to_middle = nn.Sequential(ConvNorm(fine, middle, stride=2), Residual(middle))
        self.to_coarse = Conv3d(middle, coarse, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(coarse, heads, adapter_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(coarse)
        self.lateral_middle = nn.Conv3d(coarse, middle, 1)
        self.lateral_fine = nn.Conv3d(middle, fine, 1)
        self.smooth_middle = Residual(middle)

    def forward(self, image: Tensor, valid: Tensor) -> Embedding:
        """Encode raw intensities (B, 1, X, Y, Z); see `normalise` for the arguments."""
        image = normalise(image, valid)
        fine = self.to_fine(self.stem(image))
        middle = self.to_middle(fine)
        x = self.to_coarse(middle)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, grid)
        coarse = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        middle = self.smooth_middle(middle + resize_like(self.lateral_middle(coarse), middle))
        fine = fine + resize_like(self.lateral_fine(middle), fine)
        return Embedding(image, valid, fine, middle, coarse)
