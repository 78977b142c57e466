"""The table of models, free of torch so that `--help` and the browser's lists are instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsam_app.errors import ModelError, unknown_name

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model that can be chosen by name.

    Attributes:
        name: what the user types.
        summary: one line for the table.
        licence: licence of the weights (SPDX).
        file: file of the weights inside the package.
        sha256: hash of that file; nothing is loaded that does not match.
        reference: where the method comes from.
    """

    name: str
    summary: str
    licence: str
    file: str
    sha256: str
    reference: str

    @property
    def path(self) -> Path:
        """Where the weights lie on this machine."""
        return WEIGHTS_FOLDER / self.file


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in [
        ModelEntry(
            name="sam3d_tiny",
            summary="3D SAM for two CPU cores; embedded, works offline",
            licence="CC-BY-SA-4.0",
            file="sam3d_tiny.safetensors",
            sha256="975846de56099979a981ba3aab7126c8e571aa7454fa66a30ce8e78ce8487561",
            reference="3DSAM-adapter (arXiv:2306.13465); Segment Anything (arXiv:2304.02643)",
        ),
    ]
}

DEFAULT_MODEL = "sam3d_tiny"


def model_entry(name: str) -> ModelEntry:
    """Entry of a model.

    Raises:
        ModelError: no model of that name; the message lists the known ones and the closest.
    """
    if name not in MODELS:
        raise ModelError(unknown_name("model", name, MODELS))
    return MODELS[name]
