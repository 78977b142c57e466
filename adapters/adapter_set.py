"""Several adapters side by side on one model, one of them in use, chosen by name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from medsam_app.adapters.adapter import Adapter, adapter_in_use
from medsam_app.adapters.header import read_header
from medsam_app.errors import AdapterError, unknown_name


class AdapterSet:
    """Keeps adapters in memory, so that switching takes milliseconds.

    Args:
        model: the model that they are for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._adapters: dict[str, Adapter] = {}

    @property
    def names(self) -> list[str]:
        """The adapters, in the order in which they came."""
        return list(self._adapters)

    @property
    def active(self) -> str | None:
        """The one in use, or None for the model alone."""
        return next((name for name, adapter in self._adapters.items() if adapter.enabled), None)

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._adapters:
            if not self._adapters:
                raise AdapterError(f"There is no adapter '{name}': none is loaded; load its file first.")
            raise AdapterError(unknown_name("adapter", name, self._adapters))
        return self._adapters[name]

    def load(self, path: str | Path, *, name: str | None = None) -> str:
        """Load an adapter's file into the set; the one in use stays in use.

        Args:
            path: what `Adapter.save` wrote.
            name: by default the file's name without .safetensors.

        Returns:
            the name.

        Raises:
            AdapterError: as for `Adapter.load`; the name is taken, or the same adapter is here already.
        """
        path = Path(path).expanduser()
        name = path.stem if name is None else name
        sha256 = read_header(path).sha256
        for other, held in self._adapters.items():
            if held.sha256 == sha256:
                raise AdapterError(
                    f"The adapter of '{path.name}' is here already, as '{other}'; use that one."
                )
        return self.add(name, Adapter.load(path, self.model))

    def add(self, name: str, adapter: Adapter) -> str:
        """Add an adapter that is loaded already.

        Raises:
            AdapterError: the name is taken, or the adapter was added to another model.
        """
        self._check_free(name)
        if not adapter.belongs_to(self.model):
            raise AdapterError(
                f"The adapter '{name}' was added to another model; load its file for this one."
            )
        self._adapters[name] = adapter
        return name

    def _check_free(self, name: str) -> None:
        if name in self._adapters:
            raise AdapterError(
                f"There is an adapter '{name}' already; give another name, or remove that one first."
            )

    def use(self, name: str | None) -> None:
        """Switch to an adapter, or to the model alone with None.

        Raises:
            AdapterError: no adapter of that name; the one in use stays in use.
        """
        wanted = None if name is None else self[name]
        other = adapter_in_use(self.model)  # it may be outside this set
        if other is not None and other is not wanted:
            other.disable()
        if wanted is not None:
            wanted.enable()

    def remove(self, name: str) -> None:
        """Remove an adapter from the set and from the model.

        Raises:
            AdapterError: no adapter of that name.
        """
        self[name].remove()
        del self._adapters[name]
