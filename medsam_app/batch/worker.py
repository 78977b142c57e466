"""Worker of a folder run: segments one case from its file to its mask on disk, in every engine."""

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

from medsam_app.batch.job import DiskFull, Job
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
    """A loaded model that segments cases.

    Several threads may share a worker; only one of them uses the model at a time.

    Args:
        settings: settings of the run.
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
            from medsam_app.predict.baseline_net import BaselineNet  # slow: imports MONAI's networks

            self.net = BaselineNet(settings.net, torch.device(self.device))
        self._model = threading.Lock()

    def ready(self) -> bool:
        """Return True; any response shows that the worker is ready."""
        return True

    def run(self, job: Job) -> CaseRecord:
        """Segment a case and return its record; a failure is recorded with its reason.

        Raises:
            DiskFull: the disk accepts no further data.
        """
        seconds: dict[str, float] = {}
        try:
            return self._run(job, seconds)
        except DiskFull:
            raise
        except MedsamError as error:
            message = str(error)
        except MemoryError:
            message = _too_large(job)
        except Exception as error:
            if "out of memory" in str(error).lower() or "can't allocate memory" in str(
                error
            ):  # as worded by torch
                message = _too_large(job)
            else:
                message = self._unexpected_error(job, error)
        return job.record(
            outcome="failed",
            message=message,
            seconds=seconds,
            peak_memory=peak_memory(),
            device=self.device,
        )

    def _run(self, job: Job, seconds: dict[str, float]) -> CaseRecord:
        with _timed(seconds, "read"):
            volume, requests = self._read(job)
        with _timed(seconds, "wait"):
            self._model.acquire()
        try:
            self.predictor.cache.clear()  # embeddings are per case
            forget_peak()
            with _timed(seconds, "segment"):
                result = (
                    self._labels(volume)
                    if job.prompts == CasePrompts()
                    else self._objects(job, volume, requests)
                )
        finally:
            peak = peak_memory() or 0
            self._model.release()
        with _timed(seconds, "write"):
            outputs = write_masks(job, volume, result, self.settings)
            picture = write_picture(job, volume, result, self.out)
        return job.record(
            outcome="done",
            objects=tuple(result.objects),
            warnings=(*volume.notes, *result.warnings),
            outputs=tuple(
                OutputRecord(path=self._inside(path), bytes=path.stat().st_size) for path in outputs
            ),
            thumbnail=self._inside(picture),
            seconds=seconds,
            peak_memory=max(peak, peak_memory() or 0) or None,
            device=self.device,
        )

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.out).as_posix()

    def _read(self, job: Job) -> tuple[Volume, list[ObjectRequest]]:
        """Read the volume, and the objects of a table or a mask.

        A prompt file selects the series, frame and channel of the image if the job does not.
        """
        series, frame, channel = job.source.series, self.settings.frame, self.settings.channel
        if job.prompts.prompt_file is not None:
            image = read_prompt_file(job.prompts.prompt_file).image
            frame = image.frame if frame is None else frame
            channel = image.channel if channel is None else channel
            series = series or image.series
        volume = load_volume(job.source.path, series=series, frame=frame, channel=channel)
        _ = volume.fingerprint  # compute and cache it here, while another case uses the model
        if job.prompts.mask is not None:
            return volume, objects_of_mask(job.prompts.mask, volume, self.settings, job.case)
        return volume, objects_of_rows(job.prompts.rows, volume.grid)

    def _labels(self, volume: Volume) -> CaseResult:
        """Segment the labels that the adapter or network learned, without prompts."""
        settings = self.settings
        if self.net is not None:
            self.net.set_volume(volume)
            label_map = self.net.label_map(probabilities=settings.probabilities)
            if settings.largest:
                from medsam_app.predict.whole_volume import keep_largest_parts

                keep_largest_parts(label_map.array)
        else:
            self.predictor.set_volume(volume)
            label_map = self.predictor.predict_labels(
                labels=settings.only or None, largest=settings.largest, probabilities=settings.probabilities
            )
        counts = np.bincount(label_map.array.ravel(), minlength=max(label_map.names) + 1)
        objects = [
            ObjectRecord(
                label=value,
                name=name,
                voxels=int(counts[value]),
                volume_ml=float(counts[value]) * volume.grid.voxel_volume_ml,
            )
            for value, name in label_map.names.items()
        ]
        return CaseResult(label_map.array, objects, chances=label_map.probabilities)

    def _objects(self, job: Job, volume: Volume, requests: list[ObjectRequest]) -> CaseResult:
        """Segment the objects that prompts define."""
        session = Session(volume, self.predictor)
        warnings: list[str] = []
        if job.prompts.prompt_file is not None:
            warnings += session.load_prompts(job.prompts.prompt_file, other_image=self.settings.other_image)
        else:
            session.settings = replace(session.settings, by_label=True)
            for request in requests:
                name = request.name or self.predictor.learned.get(request.label, f"label {request.label}")
                session_object = session.add_object(name, label=request.label)
                for prompt in request.prompts:
                    session.add_prompt(session_object.id, prompt)
        if self.settings.refine is not None:
            session.settings = replace(session.settings, refine=self.settings.refine)
        colours = {owner.label: owner.colour for owner in session.objects}
        result = CaseResult(session.label_map(), [], colours, warnings=warnings)
        for owner in session.objects:
            prediction = session.prediction(owner.id)
            result.objects.append(_object_record(owner, prediction))
            if prediction is None:
                result.warnings.append(f"No prompt says where '{owner.name}' is; it has no voxels.")
            else:
                result.masks[owner.label] = prediction
        for first, second, voxels in session.overlaps() if not self.settings.separate else ():
            owner = second if session.settings.overlap == "later" else first
            result.warnings.append(
                f"'{first.name}' and '{second.name}' share {voxels} voxels, which belong to '{owner.name}'."
            )
        return result

    def _unexpected_error(self, job: Job, error: Exception) -> str:
        """Write the details of an unexpected error to a file, and return a message with its path."""
        path = self.out / HIDDEN / "errors" / f"{job.case}.txt"
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return (
            f"Something that was not foreseen ended this case ({type(error).__name__}: {error}); it is a "
            f"fault of the program, of which {path} tells more."
        )


def _object_record(segmented: SegmentedObject, prediction: MaskPrediction | None) -> ObjectRecord:
    if prediction is None:
        return ObjectRecord(
            label=segmented.label,
            name=segmented.name,
            voxels=0,
            volume_ml=0.0,
            prompts=len(segmented.prompts),
        )
    return ObjectRecord(
        label=segmented.label,
        name=segmented.name,
        voxels=prediction.voxels,
        volume_ml=prediction.volume_ml,
        prompts=len(segmented.prompts),
        unmet=len(prediction.unmet),
        score=round(prediction.score, 4),
    )


def _too_large(job: Job) -> str:
    return f"'{job.source.path.name}' does not fit into the memory that is free; crop or downsample it first."


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = round(time.perf_counter() - start, 3)
