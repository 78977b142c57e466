"""The choice of a model: its name, its weights, an adapter and a device. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_app.adapters.header import header_for, read_header
from medsam_app.adapters.label_card import chosen_labels, spacing_of
from medsam_app.errors import ModelError
from medsam_app.models.table import DEFAULT_MODEL, model_entry


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model runs, and where.

    Attributes:
        name: of a model in `medsam_app.models.table`.
        weights: a checkpoint in place of the published one.
        adapter: file of an adapter of that model to switch on.
        device: 'auto', or a device of torch.
    """

    name: str = DEFAULT_MODEL
    weights: Path | None = None
    adapter: Path | None = None
    device: str = "auto"

    def check(self) -> None:
        """Check all that can be checked without loading the model.

        Raises:
            ModelError: an unknown name, or no file of weights.
            AdapterError: no adapter's file, or one of another model.
        """
        model_entry(self.name)
        check_weights(self.weights)
        if self.adapter is not None:
            header_for(self.adapter, self.name)

    def check_labels(self, wanted: Sequence[str] = ()) -> None:
        """Check that the adapter can find labels without a prompt.

        Args:
            wanted: names or values of the labels; empty for all that it has learned.

        Raises:
            AdapterError: from `chosen_labels` or `spacing_of`.
        """
        if self.adapter is not None:
            header = read_header(self.adapter)
            chosen_labels(self.adapter.stem, header, header.prompts, wanted or None)
            spacing_of(self.adapter.stem, header)


def check_weights(weights: Path | None) -> None:
    """Refuse weights that do not exist.

    Raises:
        ModelError: no file of weights.
    """
    if weights is not None and not weights.exists():
        raise ModelError(f"There is no file of weights '{weights}'; check the path.")
