"""Identity of a model and its adapter, for files, databases and caches."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, cast


class Identified(Protocol):
    """Model with the attributes that `ModelIdentity` reads."""

    @property
    def model_id(self) -> str:
        """Name in the table of models."""

    @property
    def weights_sha256(self) -> str:
        """Hash of the file of weights; empty for untrained weights."""

    @property
    def adapter_id(self) -> str:
        """Name of the adapter that is switched on."""

    @property
    def adapter_sha256(self) -> str:
        """Hash of the adapter that is switched on."""


@dataclass(frozen=True)
class ModelIdentity:
    """Everything that determines a model's output, except its input.

    Attributes:
        model_id: name in the table of models.
        weights_sha256: hash of the file of weights; empty for untrained weights.
        adapter_id: name of the adapter that is switched on; empty without one.
        adapter_sha256: hash of the adapter that is switched on; empty without one.
    """

    model_id: str
    weights_sha256: str
    adapter_id: str = ""
    adapter_sha256: str = ""

    @classmethod
    def of(cls, model: Identified) -> ModelIdentity:
        """Return the current identity of a model."""
        return cls(model.model_id, model.weights_sha256, model.adapter_id, model.adapter_sha256)


def cache_key(model: Identified) -> tuple[Hashable, ...]:
    """Return a key that distinguishes cached outputs of different models.

    If there is no hash of the weights, the key contains the model object itself. The cache then keeps it
    alive, so no other model can have the same identity.
    """
    weights = model.weights_sha256 or cast(Hashable, model)
    return model.model_id, weights, model.adapter_sha256
