"""Output files of a case: its masks, and a picture of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam_app.atomic import replace_file
from medsam_app.batch.job import Job, NoRoom
from medsam_app.batch.record import HIDDEN, ObjectRecord
from medsam_app.batch.settings import BatchSettings
from medsam_app.batch.thumbnails import thumbnail
from medsam_app.errors import SaveError
from medsam_app.io.mask_formats import plain_name, save_labels
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_probability

if TYPE_CHECKING:  # heavy
    from medsam_app.predict.core.prediction import MaskPrediction

#: What a disk says that takes no more, which no other case would change.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class CaseResult:
    """Label map of a case with its objects, before it is written.

    Attributes:
        labels: (i, j, k) label values.
        colours: of each label.
        masks: each object's own mask, where they are written one by one and may overlap.
        chances: (i, j, k) probabilities by label, 255 for 1, of labels that were found without prompts.
    """

    labels: NDArray[np.unsignedinteger]
    objects: list[ObjectRecord]
    colours: dict[int, str] = field(default_factory=dict)
    masks: dict[int, MaskPrediction] = field(default_factory=dict)
    chances: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def names(self) -> dict[int, str]:
        """Label names by value."""
        return {each.label: each.name for each in self.objects}


def write_masks(job: Job, volume: Volume, made: CaseResult, settings: BatchSettings) -> list[Path]:
    """Write what was made; each file is whole or not there.

    Raises:
        SaveError: a file could not be written. NoRoom: nor could any other.
    """
    place = job.outputs
    with _told(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        if settings.separate:
            place.mkdir(exist_ok=True)
            written = [_save_own(job, volume, made, each) for each in made.objects]
        else:
            written = [save_labels(made.labels, volume, place, names=made.names, colours=made.colours)]
        if settings.probabilities:
            written += [_save_chance(job, volume, made, each) for each in made.objects]
        return written


def write_picture(job: Job, volume: Volume, made: CaseResult, out: Path) -> Path:
    """Write the thumbnail of a case within the output folder.

    Raises:
        SaveError: it could not be written. NoRoom: nor could anything else.
    """
    path = out / HIDDEN / "thumbnails" / f"{job.case}.png"
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as draft:
            draft.write_bytes(thumbnail(volume, made.labels, colours=made.colours or None))
    return path


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn errors of the disk into sentences; a full disk ends the run."""
    try:
        yield
    except SaveError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM:
            raise NoRoom(str(error)) from error
        raise
    except OSError as error:
        kind = NoRoom if error.errno in _NO_ROOM else SaveError
        raise kind(
            f"{path} could not be written ({error.strerror}); free some space, change the permissions or "
            "give another output folder."
        ) from error


def _save_own(job: Job, volume: Volume, made: CaseResult, each: ObjectRecord) -> Path:
    """Write the mask of one object to its own file."""
    own = made.masks[each.label].mask if each.label in made.masks else made.labels == each.label
    path = job.outputs / f"{each.label}_{plain_name(each.name)}{job.ending}"
    colour = {1: made.colours[each.label]} if each.label in made.colours else {}
    return save_labels(own, volume, path, names={1: each.name}, colours=colour)


def _save_chance(job: Job, volume: Volume, made: CaseResult, each: ObjectRecord) -> Path:
    """The probability of one object as a NIfTI file."""
    name = f"{each.label}_{plain_name(each.name)}_probability.nii.gz"
    beside = job.outputs.with_name(f"{job.case.rsplit('/', 1)[-1]}_{name}")
    path = job.outputs / name if job.outputs.is_dir() else beside
    if each.label in made.chances:
        chance = made.chances[each.label]
    elif each.label in made.masks:
        chance = made.masks[each.label].probability()
    else:
        chance = np.zeros(volume.shape, dtype=np.uint8)
    return save_probability(chance, volume, path)
