"""A case of a folder, from its file to its mask on the disk: the function that every engine runs."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from medsam_app.batch.job import Job, NoRoom
from medsam_app.batch.output import CaseResult, write_masks, write_picture
from medsam_app.batch.prompts import CasePrompts, ObjectRequest, objects_of_mask, objects_of_rows
from medsam_app.batch.record import HIDDEN, CaseRecord, ObjectRecord, OutputRecord
from medsam_app.batch.settings import BatchSettings
from medsam_app.errors import MedsamError
from medsam_app.io.loading import load_volume
from medsam_app.io.volume import Volume
from medsam_app.models.load import choose_device
from medsam_app.predict.core.prediction import MaskPrediction
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.session.objects import SegmentedObject
from medsam_app.session.prompt_file import read_prompt_file
from medsam_app.session.session import Session
from medsam_app.system import forget_peak, peak_memory

if TYPE_CHECKING:
    from medsam_app.predict.baseline_net import BaselineNet


class Worker:
    """Holds the model and segments cases; safe to call from several threads, of which one uses the model.

    Args:
        out: the output folder.
        device: as for `VolumePredictor`.

    Raises:
        MedsamError: the model cannot be loaded.
    """

    def __init__(self, settings: BatchSettings, out: Path, *, device: str = "auto") -> None:
        self.settings = settings
        self.out = out
        self.device = str(choose_device(device)[0])
        self.predictor = VolumePredictor(
            settings.model, weights=settings.weights, adapter=settings.adapter, device=self.device
        )
        self.net: BaselineNet | None = None
        if settings.net is not None:
            from medsam_app.predict.baseline_net import BaselineNet  # slow: MONAI's networks

            self.net = BaselineNet(settings.net, torch.device(self.device))
        self._model = threading.Lock()

    def ready(self) -> bool:
        """Return True; answering at all shows that the worker is ready."""
        return True

    def run(self, job: Job) -> CaseRecord:
        """Segment a case, or say why that cannot be.

        Raises:
            NoRoom: the disk takes no more.
        """
        seconds: dict[str, float] = {}
        try:
            return self._run(job, seconds)
        except NoRoom:
            raise
        except MedsamError as error:
            message = str(error)
        except MemoryError:
            message = _too_large(job)
        except Exception as error:
            if "out of memory" in str(error).lower() or "can't allocate memory" in str(
                error
            ):  # torch's words
                message = _too_large(job)
            else:
                message = self._unforeseen(job, error)
        return job.record(
            outcome="failed",
            message=message,
            seconds=seconds,
            peak_memory=peak_memory(),
            device=self.device,
        )

    def _run(self, job: Job, seconds: dict[str, float]) -> CaseRecord:
        with _timed(seconds, "read"):
            volume, wanted = self._read(job)
        with _timed(seconds, "wait"):
            self._model.acquire()
        try:
            self.predictor.cache.clear()  # no case has use for another's embeddings
            forget_peak()
            with _timed(seconds, "segment"):
                made = (
                    self._labels(volume) if job.asked == CasePrompts() else self._objects(job, volume, wanted)
                )
        finally:
            most = peak_memory() or 0
            self._model.release()
        with _timed(seconds, "write"):
            outputs = write_masks(job, volume, made, self.settings)
            picture = write_picture(job, volume, made, self.out)
        return job.record(
            outcome="done",
            objects=tuple(made.objects),
            warnings=(*volume.notes, *made.warnings),
            outputs=tuple(
                OutputRecord(path=self._inside(path), bytes=path.stat().st_size) for path in outputs
            ),
            thumbnail=self._inside(picture),
            seconds=seconds,
            peak_memory=max(most, peak_memory() or 0) or None,
            device=self.device,
        )

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.out).as_posix()

    def _read(self, job: Job) -> tuple[Volume, list[ObjectRequest]]:
        """Read the volume, and the objects of a table or a mask.

        A prompt file decides which part of the image is meant if the job does not.
        """
        series, frame, channel = job.found.series, self.settings.frame, self.settings.channel
        if job.asked.prompt_file is not None:
            image = read_prompt_file(job.asked.prompt_file).image
            frame = image.frame if frame is None else frame
            channel = image.channel if channel is None else channel
            series = series or image.series
        volume = load_volume(job.found.path, series=series, frame=frame, channel=channel)
        _ = volume.fingerprint  # worked out here, while the model is busy with another
        if job.asked.mask is not None:
            return volume, objects_of_mask(job.asked.mask, volume, self.settings, job.case)
        return volume, objects_of_rows(job.asked.rows, volume.grid)

    def _labels(self, volume: Volume) -> CaseResult:
        """Segment the labels that the adapter or network learned, without prompts."""
        settings = self.settings
        if self.net is not None:
            self.net.set_volume(volume)
            found = self.net.label_map(probabilities=settings.probabilities)
            if settings.largest:
                from medsam_app.predict.whole_volume import keep_largest_parts

                keep_largest_parts(found.array)
        else:
            self.predictor.set_volume(volume)
            found = self.predictor.predict_labels(
                labels=settings.only or None, largest=settings.largest, probabilities=settings.probabilities
            )
        counts = np.bincount(found.array.ravel(), minlength=max(found.names) + 1)
        objects = [
            ObjectRecord(
                label=value,
                name=name,
                voxels=int(counts[value]),
                volume_ml=float(counts[value]) * volume.grid.voxel_volume_ml,
            )
            for value, name in found.names.items()
        ]
        return CaseResult(found.array, objects, chances=found.probabilities)

    def _objects(self, job: Job, volume: Volume, wanted: list[ObjectRequest]) -> CaseResult:
        """Segment the objects that prompts define."""
        session = Session(volume, self.predictor)
        warnings: list[str] = []
        if job.asked.prompt_file is not None:
            warnings += session.load_prompts(job.asked.prompt_file, other_image=self.settings.other_image)
        else:
            session.settings = replace(session.settings, by_label=True)
            for each in wanted:
                name = each.name or self.predictor.learned.get(each.label, f"label {each.label}")
                added = session.add_object(name, label=each.label)
                for prompt in each.prompts:
                    session.add_prompt(added.id, prompt)
        if self.settings.refine is not None:
            session.settings = replace(session.settings, refine=self.settings.refine)
        colours = {each.label: each.colour for each in session.objects}
        made = CaseResult(session.label_map(), [], colours, warnings=warnings)
        for owner in session.objects:
            found = session.prediction(owner.id)
            made.objects.append(_object_record(owner, found))
            if found is None:
                made.warnings.append(f"No prompt says where '{owner.name}' is; it has no voxels.")
            else:
                made.masks[owner.label] = found
        for first, second, voxels in session.overlaps() if not self.settings.separate else ():
            owner = second if session.settings.overlap == "later" else first
            made.warnings.append(
                f"'{first.name}' and '{second.name}' share {voxels} voxels, which belong to '{owner.name}'."
            )
        return made

    def _unforeseen(self, job: Job, error: Exception) -> str:
        """Store the details of an unexpected error, and report where they are."""
        path = self.out / HIDDEN / "errors" / f"{job.case}.txt"
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return (
            f"Something that was not foreseen ended this case ({type(error).__name__}: {error}); it is a "
            f"fault of the program, of which {path} tells more."
        )


def _object_record(owner: SegmentedObject, found: MaskPrediction | None) -> ObjectRecord:
    if found is None:
        return ObjectRecord(
            label=owner.label, name=owner.name, voxels=0, volume_ml=0.0, prompts=len(owner.prompts)
        )
    return ObjectRecord(
        label=owner.label,
        name=owner.name,
        voxels=found.voxels,
        volume_ml=found.volume_ml,
        prompts=len(owner.prompts),
        unmet=len(found.unmet),
        score=round(found.score, 4),
    )


def _too_large(job: Job) -> str:
    return f"'{job.found.path.name}' does not fit into the memory that is free; crop or downsample it first."


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = round(time.perf_counter() - began, 3)
