"""Scaling and shifting features (Lian et al., arXiv:2210.08823): y becomes scale * y + shift, by channel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.attachment_points import Sites
from medsam_app.adapters.component import Part, key
from medsam_app.adapters.table import SsfSettings


class ScaleShift(nn.Module):
    """One factor and one offset a channel, starting at 1 and 0.

    Args:
        channels: of what it is applied to.
        shifted: False leaves the offset out, for a layer without a bias to merge it into.
    """

    def __init__(self, channels: int, *, shifted: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels)) if shifted else None

    def forward(self, x: Tensor, *, axes_behind: int) -> Tensor:
        """Scale and shift the channels of `x`, which are followed by `axes_behind` spatial axes."""
        shape = (-1, *[1] * axes_behind)
        # In the type of the features: under autocast the rest of the network must not be widened.
        x = x * self.scale.to(x.dtype).view(shape)
        return x if self.shift is None else x + self.shift.to(x.dtype).view(shape)


class SsfPart(Part):
    """A `ScaleShift` after the linear layers and norms of the blocks and after the patch embedding."""

    def __init__(self, sites: Sites, settings: SsfSettings) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = dict(sites.patch_embedding)
        for site in sites.blocks:
            layers |= {linear.name: linear.layer for linear in site.linears}
            layers |= {name: norm for name, norm in site.norms.items() if _has_weight(norm)}
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
            layer.register_forward_hook(partial(_apply, self.layers[key(name)], _axes_behind(layer)))
            for name, layer in self._targets.items()
        ]

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield each module, the name of its parameter and the merged tensor."""
        for name, layer in self._targets.items():
            own = self.layers[key(name)]
            assert isinstance(own, ScaleShift)
            weight = layer.get_parameter("weight")
            yield layer, "weight", weight * own.scale.view(-1, *[1] * (weight.dim() - 1))
            if own.shift is not None:
                yield layer, "bias", layer.get_parameter("bias") * own.scale + own.shift


def _has_weight(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "weight", None), nn.Parameter)


def _axes_behind(layer: nn.Module) -> int:
    """Return the number of axes after the channels in a layer's output."""
    return layer.weight.dim() - 2 if isinstance(layer, nn.Conv2d | nn.Conv3d) else 0


def _apply(
    layer: nn.Module, behind: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    return layer(output, axes_behind=behind)
