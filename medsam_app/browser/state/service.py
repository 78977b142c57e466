"""Service shared by all pages: model, worker thread, volumes and workspaces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, TypeVar

from medsam_app.browser.options import UPLOAD_BYTES
from medsam_app.browser.protocol import allowed_files
from medsam_app.browser.protocol.binary import volume_header
from medsam_app.browser.protocol.request_bodies import Source
from medsam_app.browser.protocol.script_files import Exchange
from medsam_app.browser.state.teaching import TeachingRuns
from medsam_app.browser.state.worker import ModelWorker
from medsam_app.browser.state.worklists import Worklists
from medsam_app.browser.state.workspace_registry import WorkspaceRegistry
from medsam_app.browser.state.workspaces import SourceParts, Workspace
from medsam_app.errors import MedsamError, SeriesChoice, VolumeError
from medsam_app.io.formats import UPLOADABLE, stem
from medsam_app.io.headers import find_format
from medsam_app.io.loading import load_volume
from medsam_app.io.volume import Volume
from medsam_app.models.load import choose_device
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.model_choice import ModelChoice
from medsam_app.predict.predictor import CACHE_BYTES, AnyModel, VolumePredictor
from medsam_app.session.label_set import Label
from medsam_app.session.session import Session
from medsam_app.synthetic.torso import torso_phantom
from medsam_app.worklist.store import Worklist
from medsam_app.worklist.teaching_job import Teaching

Result = TypeVar("Result")
log = logging.getLogger(__name__)

#: Volumes read at the same time. While reading, more memory is needed than for the volume.
READERS = 2
SAMPLE_NAME = "torso_phantom"


class Service:
    """State of one server.

    Args:
        image: volume that a page opens first; None for the sample.
        roots: folders on the server that pages may browse and open files from.
        model: choice of the segmentation model, or a loaded model; the embedded model by default.
        upload_bytes: size of the largest upload in bytes.
        workspaces: registry of the pages' workspaces.
        worklist: folder for worklists and the masks of accepted cases; None to keep them with the data.
        labels: objects that pages offer to add.
    """

    def __init__(
        self,
        *,
        image: Path | None = None,
        roots: Sequence[Path] = (),
        model: ModelChoice | AnyModel | None = None,
        upload_bytes: int = UPLOAD_BYTES,
        workspaces: WorkspaceRegistry | None = None,
        worklist: Path | None = None,
        labels: Sequence[Label] = (),
    ) -> None:
        self.image = image
        self.labels = tuple(labels)
        self.roots = [Path(root) for root in roots]
        self.upload_bytes = upload_bytes
        self.exchange = Exchange(upload_bytes)
        self.workspaces = WorkspaceRegistry() if workspaces is None else workspaces
        self.worklists = Worklists(self.roots, worklist)
        self.worker = ModelWorker()
        self.cache = EmbeddingCache(CACHE_BYTES)
        if model is None or isinstance(model, ModelChoice):
            self._choice, self._loaded = model or ModelChoice(), None
        else:
            self._choice, self._loaded = ModelChoice(name=model.model_id), model
        self._device, self.device_sentence = choose_device(self._choice.device)
        self._model: Future[AnyModel] = self.worker.submit(self._load)
        self.worker.submit(_warm_readers)
        self.teaching_runs = TeachingRuns(
            self.worker,
            load=self._load,
            make=lambda folder: Teaching(
                folder,
                model=self._choice.name,
                weights=self._choice.weights,
                device=str(self._device),
            ),
            adapter=self._choice.adapter,
        )
        self._shared: dict[str, Volume] = {}
        self._shared_lock = Lock()
        self.readers = BoundedSemaphore(READERS)

    def _load(self, adapter: Path | None = None) -> AnyModel:
        """Return the server's model. With an adapter, load a separate model with this adapter instead."""
        try:
            return VolumePredictor(
                self._loaded if self._loaded is not None and adapter is None else self._choice.name,
                weights=self._choice.weights,
                adapter=adapter or self._choice.adapter,
                device=str(self._device),
            ).model
        except MedsamError as error:
            log.error("%s", error)
            raise

    @property
    def model(self) -> AnyModel:
        """The server's model; waits until it is loaded and raises the error of a failed load."""
        return self._model.result()

    def model_for(self, worklist: Worklist) -> AnyModel:
        """Return the model for a worklist: the server's model, with the worklist's adapter if it uses one.

        Raises:
            MedsamError: the model or the adapter cannot be loaded.
        """
        return (self.teaching_runs.model(worklist) or self._model).result()

    def page_facts(self, workspace: Workspace) -> dict[str, Any]:
        """Return the facts that a page needs at the start."""
        opened = workspace.opened
        name = self._choice.name
        adapter = self._choice.adapter
        with_adapter = "" if adapter is None else f" with the adapter {adapter.stem}"
        return {
            "token": workspace.token,
            "upload_bytes": self.upload_bytes,
            "upload_files": allowed_files.UPLOAD_FILES,
            "extensions": UPLOADABLE,
            "roots": [root.resolve().name or str(root) for root in self.roots],
            "model": f"{name}{with_adapter}. {self.device_sentence}",
            "start": {"source": "start" if self.image is not None else "sample"},
            "name": SAMPLE_NAME if self.image is None else _title(self.image.name),
            "labels": [asdict(label) for label in self.labels_of(workspace)],
            "volume": None if opened is None else opened.header,
            "case": opened.case.name if opened is not None and opened.case else None,
        }

    def labels_of(self, workspace: Workspace) -> tuple[Label, ...]:
        """Return the label set of a page: its own, or the server's."""
        return self.labels if workspace.labels is None else workspace.labels

    def sample(self) -> Volume:
        """Return the bundled sample, computed once."""
        with self._shared_lock:
            if "sample" not in self._shared:
                self._shared["sample"] = torso_phantom()[0]
            return self._shared["sample"]

    def open(self, workspace: Workspace, source: Source) -> dict[str, Any]:
        """Open a volume in a workspace in place of the previous one; return its header for the page.

        Raises:
            VolumeError: the file cannot be used, or (SeriesChoice) one of several parts must be chosen.
        """
        workspace.show("Reading the volume")
        try:
            with self.readers:
                volume, name = self._read(workspace, source)
            self.evict_for(workspace, volume)
            workspace.show("Loading the model")
            predictor = VolumePredictor(self._model.result(), cache=self.cache)
            header = self.header(workspace, volume, name, source)
            session = Session(volume, predictor, refine=False)
            with workspace.lock:
                session.labels = self.labels_of(workspace)
                header = workspace.replace_volume(session, name, header).header
            # Keep an upload that is needed later: DICOM segmentations refer to its slices, and the user may
            # choose another series or frame.
            needed = source.source == "upload" and (header["dicom"] or header["parts"])
            workspace.files.hold(source.upload if needed else None)
            if source.source == "upload":
                workspace.files.drop(source.upload)
            return header
        finally:
            workspace.show("")

    @staticmethod
    def header(workspace: Workspace, volume: Volume, name: str, source: Source) -> dict[str, Any]:
        """Return the header of a volume for the page."""
        header = volume_header(volume.array, volume.grid, name=name, modality=volume.modality)
        header["source"] = source.model_dump()
        header["parts"] = {option: choices for option, choices in workspace.parts.choices.items() if choices}
        header["dicom"] = volume.source is not None and find_format(volume.source) == "dicom"
        return header

    def evict_for(self, workspace: Workspace, volume: Volume) -> None:
        """Free memory for a volume that is going to replace the volume of a workspace.

        Raises:
            VolumeError: the volume does not fit in memory in addition to the active workspaces.
        """
        shared = any(volume is shared_volume for shared_volume in self._shared.values())
        replaced = workspace.array
        freed = 0 if replaced is None else replaced.nbytes
        self.workspaces.evict(workspace, 0 if shared else max(0, volume.array.nbytes - freed))

    def work(self, workspace: Workspace, job: Callable[[], Result]) -> Future[Result]:
        """Queue a job of a workspace for the model; enforce the memory limit when it ends.

        Raises:
            SettingsError: too many jobs of the workspace are already waiting.
        """

        def job_then_evict() -> Result:
            try:
                return job()
            finally:
                self.workspaces.evict(workspace)

        return self.worker.submit(job_then_evict, workspace.token)

    def _read(self, workspace: Workspace, source: Source) -> tuple[Volume, str]:
        """Return a volume and its name; record the parts that its source offers in `workspace.parts`."""
        if workspace.parts.location != source.location:
            workspace.parts = SourceParts(source.location)
        choices = workspace.parts.choices
        try:
            volume, name = self.read(workspace, source)
        except SeriesChoice as error:
            if error.option == "series":
                choices.clear()
            choices[error.option] = error.choices
            raise
        for option in ("frame", "channel"):
            if getattr(source, option) is None:  # the source has only one
                choices.pop(option, None)
        return volume, name

    def read_part(
        self, workspace: Workspace, source: Source, chosen: Mapping[str, Any]
    ) -> tuple[Volume, Source]:
        """Read a volume, with previous choices for the parts that `source` leaves open.

        Args:
            workspace: workspace of the page.
            source: file and the parts chosen in it.
            chosen: previous choices by option: series, frame and channel.

        Returns:
            The volume, and the source with all choices.

        Raises:
            VolumeError: as for `read`.
        """
        while True:
            try:
                return self._read(workspace, source)[0], source
            except SeriesChoice as error:
                choice = chosen.get(error.option)
                if choice is None or getattr(source, error.option) is not None:
                    raise
                source = source.model_copy(update={error.option: choice})

    def read(self, workspace: Workspace, source: Source) -> tuple[Volume, str]:
        """Read a volume; return it with its name.

        Raises:
            VolumeError: the file cannot be used, or (SeriesChoice) one of several parts must be chosen.
        """
        if source.source == "sample":
            return self.sample(), SAMPLE_NAME
        choice = {"series": source.series, "frame": source.frame, "channel": source.channel}
        where = {"source": source.source, "root": source.root, "path": source.path, "upload": source.upload}
        with self.file(workspace, **where) as (path, name):  # type: ignore[arg-type]
            return load_volume(path, **choice), _title(name)  # type: ignore[arg-type]

    @contextmanager
    def file(
        self, workspace: Workspace, *, source: str, root: int, path: str, upload: str
    ) -> Iterator[tuple[Path, str]]:
        """Yield the path and name of a file that a page may read; it is not deleted within the context.

        Raises:
            VolumeError: the page may not read the file, or it does not exist.
        """
        if source == "upload":
            with workspace.files.reading(upload) as file:
                yield file
        elif source == "start":
            if self.image is None:
                raise VolumeError("This server was not started with an image; open one from the list.")
            yield self.image, self.image.name
        else:
            target = allowed_files.resolve(self.roots, root, path)
            yield target, target.name

    def close(self) -> None:
        """Stop the worker and free the workspaces."""
        self.teaching_runs.close()
        self.worker.close()
        self.workspaces.close()
        self.exchange.close()
        self.worklists.close()


def _title(name: str) -> str:
    """Return the name of a file without its ending, or the full name if nothing would remain."""
    return stem(name) or name


def _warm_readers() -> None:
    """Import MONAI's readers, which takes seconds, before the first file is opened."""
    import medsam_app.io.readers  # noqa: F401
