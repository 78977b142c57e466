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
        """(i, j, k) on the volume's grid."""

    @property
    def score(self) -> float | None:
        """The Dice that the method itself expects, if it expects any."""


class Segmenter(Protocol):
    """A method that is clicked: `VolumePredictor`, or one of `medsam_app.evaluate.classical`."""

    @property
    def volume(self) -> Volume:
        """The volume that is segmented."""

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""

    def predict(self, *, points: Any = None, point_labels: Any = None, boxes: Any = None) -> Answer:
        """Segment from all prompts so far; see `VolumePredictor.predict`."""


class LabelTold(Protocol):
    """Method that gets clicks and the label they mean."""

    @property
    def labels(self) -> Collection[int]:
        """Label values of the method; other objects are left out."""

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""

    def meaning(self, value: int, *, begun: NDArray[np.bool_] | None = None) -> Segmenter:
        """The method for objects of one value; `begun` is a mask (i, j, k) that its prompts correct."""


class LabelMapper(Protocol):
    """A method that finds all labels of a volume at once, without a prompt."""

    @property
    def labels(self) -> Collection[int]:
        """Values that it looks for; objects of others are left out."""

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""

    def predict_labels(self) -> NDArray[np.integer]:
        """(i, j, k) values of labels on the volume's grid, 0 for none of them."""


@dataclass(kw_only=True)
class Methods:
    """Methods to measure, by unique names.

    Attributes:
        segmenters: clicked on every object.
        told: clicked on the objects of the labels that they know, and told which.
        mappers: asked once a volume, and scored as click 0 of the objects whose labels they know.
        begin: of those that are told a label, the one of `mappers` that finds what they can begin with.
        pairs: (method, against): of these the differences are worked out.
        weights_sha256: of the model that is measured.
        adapter: name of its adapter, empty without one.
    """

    segmenters: dict[str, Segmenter] = field(default_factory=dict)
    told: dict[str, LabelTold] = field(default_factory=dict)
    mappers: dict[str, LabelMapper] = field(default_factory=dict)
    begin: dict[str, str] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    weights_sha256: str = ""
    adapter: str = ""

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume of all of them."""
        for methods in (self.segmenters, self.told, self.mappers):
            for each in methods.values():
                each.set_volume(volume)

    def for_label(self, value: int) -> dict[str, Segmenter]:
        """Return the methods that get clicks for a label value."""
        told = {name: each.meaning(value) for name, each in self.told.items() if value in each.labels}
        return self.segmenters | told
