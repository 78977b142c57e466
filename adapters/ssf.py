"""Scaling and shifting of features (SSF; Lian et al., arXiv:2210.08823).

An output y becomes scale * y + shift, per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.attachment_points import AttachmentPoints
from medsam_app.adapters.component import Component, key
from medsam_app.adapters.table import SsfSettings


class ScaleShift(nn.Module):
    """One factor and one offset per channel, starting at 1 and 0.

    Args:
        channels: number of channels.
        shifted: whether there is an offset; False for a layer without a bias to merge it into.
    """

    def __init__(self, channels: int, *, shifted: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels)) if shifted else None

    def forward(self, x: Tensor, *, trailing_axes: int) -> Tensor:
        """Scale and shift the channels of `x`, which are followed by `trailing_axes` other axes."""
        shape = (-1, *[1] * trailing_axes)
        # Cast to the type of the features: float32 here would widen the rest of the network under autocast.
        x = x * self.scale.to(x.dtype).view(shape)
        return x if self.shift is None else x + self.shift.to(x.dtype).view(shape)


class SsfComponent(Component):
    """`ScaleShift` after the linear layers and norms of the blocks and after the patch embedding."""

    def __init__(self, points: AttachmentPoints, settings: SsfSettings) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = dict(points.patch_embedding)
        for block in points.blocks:
            layers |= {linear.name: linear.layer for linear in block.linears}
            layers |= {name: norm for name, norm in block.norms.items() if _has_weight(norm)}
        self._targets = layers
        self.layers = nn.ModuleDict(
            {
                key(name): ScaleShift(len(layer.get_parameter("weight")), shifted=layer.bias is not None)
                for name, layer in layers.items()
            }
        )

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        return [
            layer.register_forward_hook(partial(_apply, self.layers[key(name)], _trailing_axes(layer)))
            for name, layer in self._targets.items()
        ]

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield each module, the name of its parameter and the merged tensor."""
        for name, layer in self._targets.items():
            scale_shift = self.layers[key(name)]
            assert isinstance(scale_shift, ScaleShift)
            weight = layer.get_parameter("weight")
            yield layer, "weight", weight * scale_shift.scale.view(-1, *[1] * (weight.dim() - 1))
            if scale_shift.shift is not None:
                yield layer, "bias", layer.get_parameter("bias") * scale_shift.scale + scale_shift.shift


def _has_weight(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "weight", None), nn.Parameter)


def _trailing_axes(layer: nn.Module) -> int:
    """Return the number of axes after the channels in a layer's output."""
    return layer.weight.dim() - 2 if isinstance(layer, nn.Conv2d | nn.Conv3d) else 0


def _apply(
    layer: nn.Module, trailing_axes: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    return layer(output, trailing_axes=trailing_axes)
