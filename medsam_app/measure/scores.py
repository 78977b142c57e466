"""Scores of one object after each prompt."""

from __future__ import annotations

from dataclasses import dataclass

#: Objects with fewer voxels are left out and counted.
MIN_VOXELS = 100


@dataclass(frozen=True)
class Score:
    """One object after one click.

    Attributes:
        method: the model, or the baseline.
        label, value: name of the object, and what it is in the label map.
        voxels: its size.
        click: number of the click, from 1; the first may be a box. 0 for what the method finds of all
            labels of a volume without a prompt.
        dice: 1 for a perfect mask, 0 for one that misses the object.
        quality: the Dice that the method itself expected; None from one that expects nothing.
        unmet: clicks so far that the mask does not honour.
        seconds: time of this click; None when the mask before was perfect and nothing was clicked. Of click
            0, the time of all labels of the volume.
        surface_dice, hd95: see `medsam_app.measure.surface_distances`; None where not measured, and
            the second also where the mask is empty.
    """

    method: str
    dataset: str
    modality: str
    case: str
    label: str
    value: int
    voxels: int
    click: int
    dice: float
    quality: float | None
    unmet: int
    seconds: float | None
    surface_dice: float | None = None
    hd95: float | None = None

    @property
    def object(self) -> tuple[str, str, str, int]:
        """Key of the object among all scores."""
        return self.dataset, self.modality, self.case, self.value


@dataclass(frozen=True)
class FalseLabel:
    """A label that a method finds in a volume that has none of it.

    Attributes:
        label, value: its name, and what it is in the label map of the method.
        voxels: how many it is given.
    """

    method: str
    dataset: str
    modality: str
    case: str
    label: str
    value: int
    voxels: int
