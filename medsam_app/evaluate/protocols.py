"""Protocols of methods that can be measured: with clicks, with a label, or without prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medsam_app.io.volume import Volume


class Answer(Protocol):
    """Prediction of a method."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, (i, j, k) on the volume's grid."""

    @property
    def score(self) -> float | None:
        """The Dice that the method predicts, or None."""


class Segmenter(Protocol):
    """Method that is clicked: `VolumePredictor`, or one in `medsam_app.evaluate.classical`."""

    @property
    def volume(self) -> Volume:
        """The volume to segment."""

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""

    def predict(self, *, points: Any = None, point_labels: Any = None, boxes: Any = None) -> Answer:
        """Segment from all prompts so far; see `VolumePredictor.predict`."""


class LabelledSegmenter(Protocol):
    """Method that receives clicks and the label of the object."""

    @property
    def labels(self) -> Collection[int]:
        """Label values that the method supports; other objects are left out."""

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""

    def with_label(self, value: int, *, initial_mask: NDArray[np.bool_] | None = None) -> Segmenter:
        """Return the method for objects of one label value.

        Args:
            initial_mask: (i, j, k) mask for prompts to correct.
        """


class LabelMapper(Protocol):
    """Method that finds all labels of a volume at once, without prompts."""

    @property
    def labels(self) -> Collection[int]:
        """Label values that the method finds; objects of other labels are left out."""

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""

    def predict_labels(self) -> NDArray[np.integer]:
        """Return (i, j, k) label values on the volume's grid, 0 for the background."""


@dataclass(kw_only=True)
class Methods:
    """Methods to measure, by unique names.

    Attributes:
        segmenters: clicked on every object.
        labelled: clicked on objects of the labels that they support, and given the label.
        mappers: run once per volume, and scored as click 0 of the objects whose labels they find.
        initial_maps: for methods in `labelled`, the method in `mappers` that supplies the initial mask.
        pairs: (method, against) for which differences are computed.
        weights_sha256: hash of the weights of the measured model.
        adapter: name of its adapter, empty without one.
    """

    segmenters: dict[str, Segmenter] = field(default_factory=dict)
    labelled: dict[str, LabelledSegmenter] = field(default_factory=dict)
    mappers: dict[str, LabelMapper] = field(default_factory=dict)
    initial_maps: dict[str, str] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    weights_sha256: str = ""
    adapter: str = ""

    def set_volume(self, volume: Volume) -> None:
        """Set the volume of all methods."""
        for methods in (self.segmenters, self.labelled, self.mappers):
            for method in methods.values():
                method.set_volume(volume)

    def for_label(self, value: int) -> dict[str, Segmenter]:
        """Return the methods that receive clicks for a label value."""
        labelled = {
            name: method.with_label(value) for name, method in self.labelled.items() if value in method.labels
        }
        return self.segmenters | labelled
