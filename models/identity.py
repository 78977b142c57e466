"""Identity of a model with its weights and adapter, as files, databases and caches record it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, cast


class Identified(Protocol):
    """A model that carries its identity; see `ModelIdentity`."""

    @property
    def model_id(self) -> str:
        """Name in the table of models."""

    @property
    def weights_sha256(self) -> str:
        """Hash of the file of weights; empty for fresh weights."""

    @property
    def adapter_id(self) -> str:
        """Name of the adapter that is switched on."""

    @property
    def adapter_sha256(self) -> str:
        """Hash of the adapter that is switched on."""


@dataclass(frozen=True)
class ModelIdentity:
    """What decides a model's output besides its input.

    Attributes:
        model_id: name in the table of models.
        weights_sha256: hash of the file of weights; empty for fresh weights.
        adapter_id, adapter_sha256: name and hash of the adapter that is switched on; empty without one.
    """

    model_id: str
    weights_sha256: str
    adapter_id: str = ""
    adapter_sha256: str = ""

    @classmethod
    def of(cls, model: Identified) -> ModelIdentity:
        """Return the identity of a model as it is now."""
        return cls(model.model_id, model.weights_sha256, model.adapter_id, model.adapter_sha256)


def cache_key(model: Identified) -> tuple[Hashable, ...]:
    """Return what distinguishes cached outputs of different models.

    Without a hash of its weights that is the model itself, whose place no other model can take as long as the
    cache holds it.
    """
    weights = model.weights_sha256 or cast(Hashable, model)
    return model.model_id, weights, model.adapter_sha256
