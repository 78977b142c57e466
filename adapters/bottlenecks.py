"""Bottleneck adapters: a convolution before each block, or two MLPs inside it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.attachment_points import AttachmentPoints
from medsam_app.adapters.component import Component, key
from medsam_app.adapters.table import BottleneckSettings, SpatialSettings
from medsam_app.errors import AdapterError
from medsam_app.models.layers import SpatialAdapter


class SpatialComponent(Component):
    """`SpatialAdapter` before each transformer block, as in 3DSAM-adapter (arXiv:2306.13465).

    On a 2D backbone the slice is a grid one voxel deep, so only the middle plane of each
    kernel has an effect.
    """

    def __init__(self, points: AttachmentPoints, settings: SpatialSettings) -> None:
        super().__init__()
        self._points = points
        self.layers = nn.ModuleDict(
            {key(block.name): SpatialAdapter(block.width, settings.bottleneck) for block in points.blocks}
        )

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        return [
            point.block.register_forward_pre_hook(
                partial(_before_block, self.layers[key(point.name)]), with_kwargs=True
            )
            for point in self._points.blocks
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
    """Down-projection, GELU and up-projection; the up-projection starts at zero.

    Args:
        dim: channels of the tokens.
        bottleneck: channels between the projections.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the change to add to (B, T, C) tokens."""
        return self.up(F.gelu(self.down(tokens)))


class BottleneckComponent(Component):
    """Two MLPs per block, as in Medical SAM Adapter (arXiv:2304.12620).

    One follows the attention, with a residual connection. The other runs parallel to the block's MLP, on the
    same input, and its output is scaled.
    """

    def __init__(self, points: AttachmentPoints, settings: BottleneckSettings) -> None:
        super().__init__()
        self._points = points
        self._scale = settings.scale
        layers = {
            f"{key(block.name)}/{position}": Bottleneck(block.width, settings.bottleneck)
            for block in points.blocks
            for position in ("attention", "mlp")
        }
        self.layers = nn.ModuleDict(layers)

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        handles = []
        for point in self._points.blocks:
            sequential, parallel = (
                self.layers[f"{key(point.name)}/{position}"] for position in ("attention", "mlp")
            )
            handles.append(point.attention.register_forward_hook(partial(_apply_sequential, sequential)))
            handles.append(point.mlp.register_forward_hook(partial(_apply_parallel, parallel, self._scale)))
        return handles


def _apply_sequential(
    layer: nn.Module, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    return output + layer(output)


def _apply_parallel(
    layer: nn.Module, scale: float, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    return output + scale * layer(args[0])
