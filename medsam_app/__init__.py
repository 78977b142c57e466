"""Segment medical volumes by clicking, in bulk, or with a model taught on your own data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam_app.batch.run import segment_folder
    from medsam_app.errors import MedsamError
    from medsam_app.io.loading import load_mask, load_volume
    from medsam_app.io.volume import Volume
    from medsam_app.io.writing import save_mask
    from medsam_app.predict.predictor import VolumePredictor
    from medsam_app.prompts.types import Box, MaskPrompt, Point
    from medsam_app.session.session import Session

from medsam_app._version import __version__ as __version__

__all__ = [
    "Box",
    "MaskPrompt",
    "MedsamError",
    "Point",
    "Session",
    "Volume",
    "VolumePredictor",
    "load_mask",
    "load_volume",
    "save_mask",
    "segment_folder",
]

_HOME = {
    "Box": "prompts.types",
    "MaskPrompt": "prompts.types",
    "MedsamError": "errors",
    "Point": "prompts.types",
    "Session": "session.session",
    "Volume": "io.volume",
    "VolumePredictor": "predict.predictor",
    "load_mask": "io.loading",
    "load_volume": "io.loading",
    "save_mask": "io.writing",
    "segment_folder": "batch.run",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch and MONAI take seconds to load."""
    if name not in _HOME:
        raise AttributeError(f"module 'medsam_app' has no attribute '{name}'")
    return getattr(importlib.import_module(f"medsam_app.{_HOME[name]}"), name)
