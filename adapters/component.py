"""Base class of adapter components: modules next to the backbone, and their hooks.

The backbone's modules are never wrapped or renamed, so that its checkpoints load with an adapter or
without. A hook runs whenever its module does, also when activation checkpointing computes a block again.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Part(nn.Module):
    """The tensors that a kind adds, and how they enter the computation.

    A subclass keeps the backbone's modules in plain containers, never as submodules: `parameters()` and
    `state_dict()` are the adapter's own.
    """

    def install(self) -> list[RemovableHandle]:
        """Add the hooks; removing the handles leaves the backbone as it was."""
        raise NotImplementedError

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Module, name and new value of each of the backbone's parameters, for a kind that can be merged."""
        raise NotImplementedError


def key(name: str) -> str:
    """A dotted name as one that torch allows for a submodule or a parameter."""
    return name.replace(".", "/")
