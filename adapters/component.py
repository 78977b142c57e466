"""Base class of adapter components: added modules and the hooks that call them.

The backbone's modules are never wrapped or renamed, so its checkpoints load with or without an adapter. A
hook runs whenever its module does, also when activation checkpointing recomputes a block.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Component(nn.Module):
    """Added tensors of one kind of adapter, and the hooks that apply them.

    A subclass keeps the backbone's modules in plain containers, never as submodules, so that `parameters()`
    and `state_dict()` hold the adapter's tensors only.
    """

    def install(self) -> list[RemovableHandle]:
        """Register the hooks and return their handles; removing the handles restores the backbone."""
        raise NotImplementedError

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield the module, name and merged value of each changed parameter, for mergeable kinds."""
        raise NotImplementedError


def key(name: str) -> str:
    """Return a dotted name in a form that torch allows for a submodule or parameter."""
    return name.replace(".", "/")
