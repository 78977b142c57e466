"""Image encoder of the small 3D SAM and the intensity normalisation in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.layers import Block, Conv3d, ConvNorm, Residual, resize_like

#: Voxels looked at for the percentiles and the histogram of a window.
_SAMPLES = 32768
_KNOTS = 64


@dataclass
class Embedding:
    """Output of the encoder for one window; independent of prompts.

    Attributes:
        image: (B, 2, X, Y, Z) normalised intensities in [-1, 1], see `normalise`.
        valid: (B, 1, X, Y, Z) booleans, inside the volume.
        fine, middle, coarse: features at strides 2, 4 and 8.
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
        """(B, 2, X, Y, Z) mean intensities of 3x3x3 voxels."""
        return F.avg_pool3d(self.image, 3, 1, 1, count_include_pad=False)

    @cached_property
    def half(self) -> tuple[Tensor, Tensor]:
        """`image` and `valid` at half the resolution."""
        return F.avg_pool3d(self.image, 2), F.max_pool3d(self.valid.float(), 2) > 0

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes, with what is made of the image and kept when it is first requested."""
        made = 9 * self.image.nbytes // 8 + self.valid.nbytes // 8
        return made + sum(t.nbytes for t in self.tensors)


def normalise(image: Tensor, valid: Tensor) -> Tensor:
    """Two views of a window's intensities, both in [-1, 1].

    The first is the window between the 0.5 and 99.5 percentiles of the voxels inside the volume, the
    second the same voxels after histogram equalisation, which brings out soft tissue whatever the
    window holds next to it. Voxels outside the volume are -1.

    Args:
        image: (B, 1, X, Y, Z) raw intensities, any unit.
        valid: (B, 1, X, Y, Z) booleans, inside the volume.

    Returns:
        (B, 2, X, Y, Z) float32.
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
        # Equal knots (air in CT, zero padding in MR) would make the interpolation jump.
        knots = knots + share * 1e-4
        right = torch.searchsorted(knots, linear.contiguous()).clamp(1, _KNOTS - 1)
        a, b = knots[right - 1], knots[right]
        equal = (share[right - 1] + (linear - a) / (b - a) * share[1]).clamp(0, 1)
        views.append(torch.where(inside, torch.cat([linear, equal]) * 2 - 1, -1.0))
    return torch.stack(views)


class ImageEncoder(nn.Module):
    """Convolutions down to stride 8, transformer blocks with spatial adapters, a top-down neck.

    There is no table of positions: the adapters' depth-wise convolutions tell the tokens where they
    are, so that any window whose sides are multiples of 8 can be encoded.
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
