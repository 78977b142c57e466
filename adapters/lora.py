"""Low-rank adaptation (Hu et al., arXiv:2106.09685).

A projection W x becomes W x + alpha / rank * B A x.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.attachment_points import AttachmentPoints, LinearPoint
from medsam_app.adapters.component import Component, key
from medsam_app.adapters.table import LoraSettings
from medsam_app.errors import AdapterError


class LowRank(nn.Module):
    """Low-rank change of one projection.

    A starts with orthonormal rows, and B starts at zero. If only B is trained (Zhu et al., arXiv:2402.16842,
    find a random A equally good), A is a buffer: it is stored in the file but is not a parameter.

    Args:
        dim_in: columns of the projection's weight.
        dim_out: rows of the projection's weight.
        settings: rank, alpha and the trained matrices.
    """

    a: Tensor

    def __init__(self, dim_in: int, dim_out: int, settings: LoraSettings) -> None:
        super().__init__()
        a = nn.init.orthogonal_(torch.empty(settings.rank, dim_in))
        if settings.train == "b":
            self.register_buffer("a", a)
        else:
            self.a = nn.Parameter(a)
        self.b = nn.Parameter(torch.zeros(dim_out, settings.rank))
        self.scale = settings.alpha / settings.rank

    def forward(self, x: Tensor) -> Tensor:
        """Return the change of the projection of `x`, (..., dim_out)."""
        return self.scale * F.linear(F.linear(x, self.a), self.b)

    def change(self) -> Tensor:
        """Return the change of the weight, (dim_out, dim_in)."""
        return self.scale * (self.b @ self.a)


class LoraComponent(Component):
    """`LowRank` for every chosen projection of every block; in fused layers only its rows change."""

    def __init__(self, points: AttachmentPoints, settings: LoraSettings) -> None:
        super().__init__()
        linears = [linear for block in points.blocks for linear in block.linears]
        available = {projection for linear in linears for projection in linear.rows}
        missing = [projection for projection in settings.projections if projection not in available]
        if missing:
            raise AdapterError(
                f"The blocks of this model have no projection '{missing[0]}'; they have "
                f"{', '.join(sorted(available))}."
            )
        self._targets: list[tuple[LinearPoint, dict[str, str]]] = []
        self.layers = nn.ModuleDict()
        for linear in linears:
            keys: dict[str, str] = {
                projection: f"{key(linear.name)}/{projection}"
                for projection in linear.rows
                if projection in settings.projections
            }
            for projection, name in keys.items():
                start, stop = linear.rows[projection]
                self.layers[name] = LowRank(linear.layer.in_features, stop - start, settings)
            if keys:
                self._targets.append((linear, keys))

    def _changes(self, keys: dict[str, str]) -> dict[str, LowRank]:
        return {projection: self.layers[name] for projection, name in keys.items()}  # type: ignore[misc]

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        return [
            linear.layer.register_forward_hook(partial(_add_changes, linear.rows, self._changes(keys)))
            for linear, keys in self._targets
        ]

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield each module, the name of its parameter and the merged tensor."""
        for linear, keys in self._targets:
            weight = linear.layer.weight.detach().clone()
            for projection, layer in self._changes(keys).items():
                start, stop = linear.rows[projection]
                weight[start:stop] += layer.change()
            yield linear.layer, "weight", weight


def _add_changes(
    rows: dict[str, tuple[int, int]],
    changes: dict[str, LowRank],
    module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    pieces = output.split([stop - start for start, stop in rows.values()], dim=-1)
    changed = [
        piece + changes[projection](args[0]) if projection in changes else piece
        for projection, piece in zip(rows, pieces, strict=True)
    ]
    return torch.cat(changed, dim=-1) if len(changed) > 1 else changed[0]
