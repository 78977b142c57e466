"""Trained copies of parameters of the base model, such as norms or a decoder."""

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
class _CopiedParameter:
    """Parameter of the base model that has a copy; `base` is the original while the copy is in use."""

    module: nn.Module
    name: str
    copy: nn.Parameter
    base: nn.Parameter | None = None

    def swap_in(self) -> None:
        self.base = self.module.get_parameter(self.name)
        setattr(self.module, self.name, self.copy)

    def swap_out(self) -> None:
        if self.base is not None:
            # The model may have been moved to another device in the meantime.
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


class ParameterCopies(nn.Module):
    """Copies of named parameters, which replace the base's own while they are in use.

    The base's tensors are kept and never written to. A parameter shared by several modules has one copy.

    Args:
        model: the base model without any adapter switched on.
        names: names of parameters, or of modules for all their parameters.

    Raises:
        AdapterError: A name matches no parameter.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        first_names = {id(parameter): name for name, parameter in reversed(parameters.items())}
        selected = {first_names[id(parameters[name])] for name in _matching_names(parameters, names)}
        self.names = tuple(name for name in parameters if name in selected)
        self.tensors = nn.ParameterDict(
            {key(name): nn.Parameter(parameters[name].detach().clone()) for name in self.names}
        )
        self._places = [
            _CopiedParameter(
                model.get_submodule(module), attribute, self.tensors[key(first_names[id(parameter)])]
            )
            for name, parameter in parameters.items()
            if first_names[id(parameter)] in selected
            for module, _, attribute in [name.rpartition(".")]
        ]

    def install(self) -> list[RemovableHandle]:
        """Replace the base's parameters with the copies, and return the handles of the hooks."""
        for copied in self._places:
            copied.swap_in()
        return [handle for copied in self._places for handle in copied.hooks()]

    def uninstall(self) -> None:
        """Restore the base's own parameters."""
        for copied in self._places:
            copied.swap_out()

    def merged(self) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yield the module, name and trained value of each copied parameter."""
        for copied in self._places:
            yield copied.module, copied.name, copied.copy.detach()


def _matching_names(parameters: dict[str, nn.Parameter], names: Sequence[str]) -> Iterator[str]:
    for requested in names:
        matches = [name for name in parameters if name == requested or name.startswith(f"{requested}.")]
        if not matches:
            known = {
                name.rsplit(".", levels)[0] for name in parameters for levels in range(name.count(".") + 1)
            }
            near = difflib.get_close_matches(requested, sorted(known), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else "; its state_dict lists their names."
            raise AdapterError(
                f"The model has no parameter or module with parameters called '{requested}'{hint}"
            )
        yield from matches
