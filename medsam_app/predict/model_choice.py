"""Choice of a model: name, weights, adapter and device; imports no torch."""

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
    """A model and the device on which it runs.

    Attributes:
        name: name of a model in `medsam_app.models.table`.
        weights: checkpoint to load instead of the published one.
        adapter: file of an adapter for that model; it is enabled after loading.
        device: 'auto', or the name of a torch device.
    """

    name: str = DEFAULT_MODEL
    weights: Path | None = None
    adapter: Path | None = None
    device: str = "auto"

    def check(self) -> None:
        """Check everything that can be checked without loading the model.

        Raises:
            ModelError: the name is unknown, or the weights do not exist.
            AdapterError: the file is no adapter, or belongs to another model.
        """
        model_entry(self.name)
        check_weights(self.weights)
        if self.adapter is not None:
            header_for(self.adapter, self.name)

    def check_labels(self, labels: Sequence[str] = ()) -> None:
        """Check that the adapter can segment labels without a prompt.

        Args:
            labels: names or values of the labels; empty for all learned labels.

        Raises:
            AdapterError: from `chosen_labels` or `spacing_of`.
        """
        if self.adapter is not None:
            header = read_header(self.adapter)
            chosen_labels(self.adapter.stem, header, header.prompts, labels or None)
            spacing_of(self.adapter.stem, header)


def check_weights(weights: Path | None) -> None:
    """Raise an error if the file of weights does not exist.

    Raises:
        ModelError: the file does not exist.
    """
    if weights is not None and not weights.exists():
        raise ModelError(f"There is no file of weights '{weights}'; check the path.")
