"""Output files of a case: its masks and their thumbnail."""

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
from medsam_app.batch.job import DiskFull, Job
from medsam_app.batch.record import HIDDEN, ObjectRecord
from medsam_app.batch.settings import BatchSettings
from medsam_app.batch.thumbnails import thumbnail
from medsam_app.errors import SaveError
from medsam_app.io.mask_formats import plain_name, save_labels
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_probability

if TYPE_CHECKING:  # heavy
    from medsam_app.predict.core.prediction import MaskPrediction

#: Errors of a disk that accepts no data, so that every other case would fail as well.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class CaseResult:
    """Label map of a case with its objects, before it is written.

    Attributes:
        labels: (i, j, k) label values.
        objects: records of its objects.
        colours: colour by label value.
        masks: mask of each object by label value, for separate files; they may overlap.
        chances: (i, j, k) uint8 probabilities by label value, 255 for 1, of labels found without prompts.
        warnings: sentences for the user.
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
        return {record.label: record.name for record in self.objects}


def write_masks(job: Job, volume: Volume, result: CaseResult, settings: BatchSettings) -> list[Path]:
    """Write the masks of a case; each file is written completely or not at all.

    Raises:
        SaveError: a file cannot be written.
        DiskFull: the disk accepts no further file.
    """
    outputs = job.outputs
    with _disk_errors(outputs):
        outputs.parent.mkdir(parents=True, exist_ok=True)
        if settings.separate:
            outputs.mkdir(exist_ok=True)
            written = [_save_object_mask(job, volume, result, record) for record in result.objects]
        else:
            written = [
                save_labels(result.labels, volume, outputs, names=result.names, colours=result.colours)
            ]
        if settings.probabilities:
            written += [_save_probability(job, volume, result, record) for record in result.objects]
        return written


def write_picture(job: Job, volume: Volume, result: CaseResult, out: Path) -> Path:
    """Write the thumbnail of a case into the output folder.

    Raises:
        SaveError: the file cannot be written.
        DiskFull: the disk accepts no further file.
    """
    path = out / HIDDEN / "thumbnails" / f"{job.case}.png"
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as draft:
            draft.write_bytes(thumbnail(volume, result.labels, colours=result.colours or None))
    return path


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn disk errors into errors with a sentence; a full disk ends the run."""
    try:
        yield
    except SaveError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK_FULL:
            raise DiskFull(str(error)) from error
        raise
    except OSError as error:
        kind = DiskFull if error.errno in _DISK_FULL else SaveError
        raise kind(
            f"{path} could not be written ({error.strerror}); free some space, change the permissions or "
            "give another output folder."
        ) from error


def _save_object_mask(job: Job, volume: Volume, result: CaseResult, record: ObjectRecord) -> Path:
    """Write the mask of one object to a separate file."""
    mask = result.masks[record.label].mask if record.label in result.masks else result.labels == record.label
    path = job.outputs / f"{record.label}_{plain_name(record.name)}{job.ending}"
    colour = {1: result.colours[record.label]} if record.label in result.colours else {}
    return save_labels(mask, volume, path, names={1: record.name}, colours=colour)


def _save_probability(job: Job, volume: Volume, result: CaseResult, record: ObjectRecord) -> Path:
    """Write the probability of one object as a NIfTI file."""
    name = f"{record.label}_{plain_name(record.name)}_probability.nii.gz"
    sibling = job.outputs.with_name(f"{job.case.rsplit('/', 1)[-1]}_{name}")
    path = job.outputs / name if job.outputs.is_dir() else sibling
    if record.label in result.chances:
        probability = result.chances[record.label]
    elif record.label in result.masks:
        probability = result.masks[record.label].probability()
    else:
        probability = np.zeros(volume.shape, dtype=np.uint8)
    return save_probability(probability, volume, path)
