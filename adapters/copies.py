"""Trained copies of some of the base's own parameters (norms, a decoder, ...), kept by the adapter."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters.component import key
from medsam_app.errors import AdapterError


@dataclass
class _Place:
    """A parameter of the base that has a copy; `base` is kept while the copy stands in its place."""

    module: nn.Module
    name: str
    copy: nn.Parameter
    base: nn.Parameter | None = None

    def swap_in(self) -> None:
        self.base = self.module.get_parameter(self.name)
        setattr(self.module, self.name, self.copy)

    def swap_out(self) -> None:
        if self.base is not None:
            # The model may have been moved meanwhile.
            self.base.data = self.base.data.to(self.copy.device)
            setattr(self.module, self.name, self.base)
            self.base = None

    def hooks(self) -> list[RemovableHandle]:
        """Make the module's state_dict use the base's tensor while the copy is in place."""

        def before_loading(*args: Any) -> None:
            self.swap_out()

        def after_loading(*args: Any) -> None:
            self.swap_in()

        def after_saving(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
            if self.base is not None:
                state[prefix + self.name] = self.base.detach()

        return [
            self.module.register_load_state_dict_pre_hook(before_loading),
            self.module.register_load_state_dict_post_hook(after_loading),
            self.module.register_state_dict_post_hook(after_saving),
        ]


class OwnCopies(nn.Module):
    """Copies of named parameters, which take the places of the base's own while they are in use.

    The base's tensors are set aside, never written to. A parameter that stands in several places of the
    model has one copy.

    Args:
        model: the base, as it is without any adapter.
        names: parameters, or modules of which every parameter is meant.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        standing = dict(model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in reversed(standing.items())}
        wanted = {first[id(standing[name])] for name in _chosen(standing, names)}
        self.names = tuple(name for name in standing if name in wanted)
        self.tensors = nn.ParameterDict(
            {key(name): nn.Parameter(standing[name].detach().clone()) for name in self.names}
        )
        self._places = [
            _Place(model.get_submodule(module), attribute, self.tensors[key(first[id(parameter)])])
            for name, parameter in standing.items()
            if first[id(parameter)] in wanted
            for module, _, attribute in [name.rpartition(".")]
        ]

    def install(self) -> list[RemovableHandle]:
        """Put the copies in their places."""
        for place in self._places:
            place.swap_in()
        return [handle for place in self._places for handle in place.hooks()]

    def uninstall(self) -> None:
        """Put the base's own tensors back."""
        for place in self._places:
            place.swap_out()

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Module, name and new value of each of the base's parameters."""
        for place in self._places:
            yield place.module, place.name, place.copy.detach()


def _chosen(standing: dict[str, nn.Parameter], names: Sequence[str]) -> Iterator[str]:
    for wanted in names:
        found = [name for name in standing if name == wanted or name.startswith(f"{wanted}.")]
        if not found:
            parts = {name.rsplit(".", n)[0] for name in standing for n in range(name.count(".") + 1)}
            near = difflib.get_close_matches(wanted, sorted(parts), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else "; its state_dict lists their names."
            raise AdapterError(
                f"The model has no parameter or module with parameters called '{wanted}'{hint}"
            )
        yield from found
