"""Several adapters of one model, at most one of them in use."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from medsam_app.adapters.adapter import Adapter, adapter_in_use
from medsam_app.adapters.header import read_header
from medsam_app.errors import AdapterError, unknown_name


class AdapterSet:
    """Named adapters of one model, kept in memory so that switching takes milliseconds.

    Args:
        model: the model that the adapters belong to.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._adapters: dict[str, Adapter] = {}

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order in which they were added."""
        return list(self._adapters)

    @property
    def active(self) -> str | None:
        """Name of the adapter in use, or None if the model runs without one."""
        return next((name for name, adapter in self._adapters.items() if adapter.enabled), None)

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._adapters:
            if not self._adapters:
                raise AdapterError(f"There is no adapter '{name}': none is loaded; load its file first.")
            raise AdapterError(unknown_name("adapter", name, self._adapters))
        return self._adapters[name]

    def load(self, path: str | Path, *, name: str | None = None) -> str:
        """Load an adapter from its file into the set; the adapter in use does not change.

        Args:
            path: file written by `Adapter.save`.
            name: name in the set; by default the file's name without .safetensors.

        Returns:
            The name in the set.

        Raises:
            AdapterError: As for `Adapter.load`; also if the name is taken or the set holds the same adapter.
        """
        path = Path(path).expanduser()
        name = path.stem if name is None else name
        sha256 = read_header(path).sha256
        for loaded_name, adapter in self._adapters.items():
            if adapter.sha256 == sha256:
                raise AdapterError(
                    f"The adapter of '{path.name}' is here already, as '{loaded_name}'; use that one."
                )
        return self.add(name, Adapter.load(path, self.model))

    def add(self, name: str, adapter: Adapter) -> str:
        """Add a loaded adapter under a name, and return the name.

        Raises:
            AdapterError: The name is taken, or the adapter belongs to another model.
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
        """Switch to an adapter; None switches to the model without one.

        Raises:
            AdapterError: There is no adapter of that name; the adapter in use does not change.
        """
        adapter = None if name is None else self[name]
        active = adapter_in_use(self.model)  # may be an adapter outside this set
        if active is not None and active is not adapter:
            active.disable()
        if adapter is not None:
            adapter.enable()

    def remove(self, name: str) -> None:
        """Remove an adapter from the set and from the model.

        Raises:
            AdapterError: There is no adapter of that name.
        """
        self[name].remove()
        del self._adapters[name]
