"""Checks that several commands make before loading anything heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medsam_app.adapters.header import header_for
from medsam_app.errors import ModelError
from medsam_app.models.table import model_entry

if TYPE_CHECKING:
    from medsam_app.io.volume import Volume


def check_model(model: str, weights: Path | None, adapter: Path | None) -> None:
    """What can be told of the wanted model without loading it.

    Raises:
        ModelError: an unknown name, or no file of weights.
        AdapterError: no adapter's file, or one of another model.
    """
    model_entry(model)
    if weights is not None and not weights.exists():
        raise ModelError(f"There is no file of weights '{weights}'; check the path.")
    if adapter is not None:
        header_for(adapter, model)


def geometry(volume: Volume) -> str:
    """Shape, spacing and orientation of a volume in words."""
    from medsam_app.grid.geometry import format_mm

    grid = volume.grid
    return f"{' x '.join(str(n) for n in grid.shape)} voxels, {format_mm(grid.spacing)}, {grid.orientation}"
