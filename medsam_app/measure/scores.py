"""Scores of one object after each prompt."""

from __future__ import annotations

from dataclasses import dataclass

#: Objects with fewer voxels are not scored, only counted.
MIN_VOXELS = 100


@dataclass(frozen=True)
class Score:
    """Scores of one object after one click.

    Attributes:
        method: name of the model or the baseline.
        label, value: name of the object, and its value in the label map.
        voxels: size of the object.
        click: number of the click, from 1; the first may be a box. 0 for the segmentation of all labels
            without a prompt.
        dice: 1 for a perfect mask, 0 for a mask that misses the object.
        quality: Dice predicted by the method; None if it predicts none.
        unmet: number of clicks so far that the mask does not honour.
        seconds: duration of this click; None if the previous mask was perfect and no click was made. For
            click 0, the duration for all labels of the volume.
        surface_dice, hd95: see `medsam_app.measure.surface_distances`; None if not measured. `hd95` is also
            None if the mask is empty.
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
    """A label that a method segments in a volume that does not contain it.

    Attributes:
        label, value: name of the label, and its value in the method's label map.
        voxels: number of voxels with the label.
    """

    method: str
    dataset: str
    modality: str
    case: str
    label: str
    value: int
    voxels: int
