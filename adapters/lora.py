"""Low-rank adaptation: W x becomes W x + alpha / rank * B A x (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.attachment_points import LinearSite, Sites
from medsam_app.adapters.component import Part, key
from medsam_app.adapters.table import LoraSettings
from medsam_app.errors import AdapterError


class LowRank(nn.Module):
    """The change of one projection.

    A starts with orthonormal rows and B at zero. When only B is trained (Zhu et al., arXiv:2402.16842: a
    random A does as well), A is a buffer: stored in the file, and no parameter.

    Args:
        dim_in, dim_out: columns and rows of the projection's weight.
        settings: rank, alpha and what is trained.
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
        """Return the low-rank change of a projection of `x`."""
        return self.scale * F.linear(F.linear(x, self.a), self.b)

    def change(self) -> Tensor:
        """Return the change of the weight: (dim_out, dim_in)."""
        return self.scale * (self.b @ self.a)


class LoraPart(Part):
    """A `LowRank` for every chosen projection of every block; fused layers are changed in their rows."""

    def __init__(self, sites: Sites, settings: LoraSettings) -> None:
        super().__init__()
        linears = [linear for site in sites.blocks for linear in site.linears]
        known = {role for linear in linears for role in linear.rows}
        absent = [role for role in settings.projections if role not in known]
        if absent:
            raise AdapterError(
                f"The blocks of this model have no projection '{absent[0]}'; they have "
                f"{', '.join(sorted(known))}."
            )
        self._targets: list[tuple[LinearSite, dict[str, str]]] = []
        self.layers = nn.ModuleDict()
        for linear in linears:
            keys: dict[str, str] = {
                role: f"{key(linear.name)}/{role}" for role in linear.rows if role in settings.projections
            }
            for role, name in keys.items():
                start, stop = linear.rows[role]
                self.layers[name] = LowRank(linear.layer.in_features, stop - start, settings)
            if keys:
                self._targets.append((linear, keys))

    def _changes(self, keys: dict[str, str]) -> dict[str, LowRank]:
        return {role: self.layers[name] for role, name in keys.items()}  # type: ignore[misc]

    def install(self) -> list[RemovableHandle]:
        """Attach the component's hooks and return their handles."""
        return [
            linear.layer.register_forward_hook(partial(_add, linear.rows, self._changes(keys)))
            for linear, keys in self._targets
        ]

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield each module, the name of its parameter and the merged tensor."""
        for linear, keys in self._targets:
            weight = linear.layer.weight.detach().clone()
            for role, layer in self._changes(keys).items():
                start, stop = linear.rows[role]
                weight[start:stop] += layer.change()
            yield linear.layer, "weight", weight


def _add(
    rows: dict[str, tuple[int, int]],
    changes: dict[str, LowRank],
    module: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    pieces = output.split([stop - start for start, stop in rows.values()], dim=-1)
    changed = [
        piece + changes[role](args[0]) if role in changes else piece
        for role, piece in zip(rows, pieces, strict=True)
    ]
    return torch.cat(changed, dim=-1) if len(changed) > 1 else changed[0]
