"""Adapters that compute: a bottleneck with a convolution before each block, or two small MLPs inside it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.attachment_points import Sites
from medsam_app.adapters.component import Part, key
from medsam_app.adapters.table import BottleneckSettings, SpatialSettings
from medsam_app.errors import AdapterError
from medsam_app.models.layers import SpatialAdapter


class SpatialPart(Part):
    """A `SpatialAdapter` before each transformer block, as in 3DSAM-adapter (arXiv:2306.13465).

    On a 2D backbone the slice is a grid one voxel deep, so that only the middle plane of a kernel is used.
    """

    def __init__(self, sites: Sites, settings: SpatialSettings) -> None:
        super().__init__()
        self._sites = sites
        self.layers = nn.ModuleDict(
            {key(site.name): SpatialAdapter(site.width, settings.bottleneck) for site in sites.blocks}
        )

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        return [
            site.block.register_forward_pre_hook(
                partial(_before_block, self.layers[key(site.name)]), with_kwargs=True
            )
            for site in self._sites.blocks
        ]


def _before_block(
    layer: nn.Module, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tokens, rest = args[0], args[1:]
    grid: tuple[int, ...] | None = tuple(tokens.shape[1:-1])
    if tokens.dim() == 3:
        grid = rest[0] if rest else kwargs.get("grid")
        if grid is None:
            raise AdapterError(
                f"{type(block).__name__} gets its tokens in a row, (B, N, C), without their grid, so that a "
                "'spatial' adapter cannot tell which are neighbours; use another kind."
            )
    elif tokens.dim() == 4:
        grid = (1, *tokens.shape[1:-1])
    changed = layer(tokens.reshape(len(tokens), -1, tokens.shape[-1]), grid)
    return (changed.reshape(tokens.shape), *rest), kwargs


class Bottleneck(nn.Module):
    """Down, GELU, up; the up-projection starts at zero.

    Args:
        dim: width of the tokens.
        bottleneck: width between the projections.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the change of (B, T, C) tokens."""
        return self.up(F.gelu(self.down(tokens)))


class BottleneckPart(Part):
    """Two MLPs a block, as in Medical SAM Adapter (arXiv:2304.12620).

    One behind the attention with a shortcut, one next to the block's MLP, on what that gets, with a scale.
    """

    def __init__(self, sites: Sites, settings: BottleneckSettings) -> None:
        super().__init__()
        self._sites = sites
        self._scale = settings.scale
        layers = {
            f"{key(site.name)}/{where}": Bottleneck(site.width, settings.bottleneck)
            for site in sites.blocks
            for where in ("attention", "mlp")
        }
        self.layers = nn.ModuleDict(layers)

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        handles = []
        for site in self._sites.blocks:
            behind, beside = (self.layers[f"{key(site.name)}/{where}"] for where in ("attention", "mlp"))
            handles.append(site.attention.register_forward_hook(partial(_behind, behind)))
            handles.append(site.mlp.register_forward_hook(partial(_beside, beside, self._scale)))
        return handles


def _behind(layer: nn.Module, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + layer(output)


def _beside(
    layer: nn.Module, scale: float, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    return output + scale * layer(args[0])
