"""What all pages share: the model, its worker, the volumes everybody opens, the workspaces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from medsam_app.browser import files
from medsam_app.browser.exchange import Exchange
from medsam_app.browser.lobby import Workspaces
from medsam_app.browser.uploads import UPLOAD_FILES
from medsam_app.browser.wire import volume_header
from medsam_app.browser.worker import ModelWorker
from medsam_app.browser.workspaces import Workspace
from medsam_app.cache import EmbeddingCache
from medsam_app.errors import MedsamError, VolumeError
from medsam_app.models.load import choose_device
from medsam_app.phantom import torso_phantom
from medsam_app.predictor import CACHE_BYTES, AnyModel, VolumePredictor
from medsam_app.session import Session
from medsam_app.volume import Volume, load_volume

Result = TypeVar("Result")
log = logging.getLogger(__name__)

#: Largest upload in bytes unless told otherwise.
UPLOAD_BYTES = 2_000_000_000
#: Volumes read at a time: a reader holds more than the volume, for a while.
READERS = 2
SAMPLE_NAME = "torso_phantom"


class Source(BaseModel):
    """What to open: the sample, what the server was started with, a file of a folder, or an upload."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["sample", "start", "folder", "upload"]
    root: int = 0
    path: str = ""
    upload: str = ""
    series: str | None = None
    frame: int | None = None
    channel: int | None = None


class Service:
    """State of one server.

    Args:
        image: the volume pages begin with; None for the sample.
        roots: folders that may be browsed.
        model, weights, adapter, device: as for `VolumePredictor`.
        upload_bytes: largest upload.
        workspaces: where the pages' work is kept.
    """

    def __init__(
        self,
        *,
        image: Path | None = None,
        roots: Sequence[Path] = (),
        model: str | AnyModel = "sam3d_tiny",
        weights: Path | None = None,
        adapter: Path | None = None,
        device: str = "auto",
        upload_bytes: int = UPLOAD_BYTES,
        workspaces: Workspaces | None = None,
    ) -> None:
        self.image = image
        self.roots = [Path(root) for root in roots]
        self.upload_bytes = upload_bytes
        self.exchange = Exchange(upload_bytes)
        self.workspaces = Workspaces() if workspaces is None else workspaces
        self.worker = ModelWorker()
        self.cache = EmbeddingCache(CACHE_BYTES)
        self._device, self.device_sentence = choose_device(device)
        self._wanted, self._weights, self._adapter = model, weights, adapter
        self._model: Future[AnyModel] = self.worker.submit(self._load)
        self.worker.submit(_warm_readers)
        self._shared: dict[str, Volume] = {}
        self._shared_lock = Lock()
        self._readers = BoundedSemaphore(READERS)

    def _load(self) -> AnyModel:
        try:
            return VolumePredictor(
                self._wanted, weights=self._weights, adapter=self._adapter, device=str(self._device)
            ).model
        except MedsamError as error:
            log.error("%s", error)
            raise

    def hello(self, workspace: Workspace) -> dict[str, Any]:
        """What a page is told first."""
        name = self._wanted if isinstance(self._wanted, str) else self._wanted.model_id
        with_adapter = "" if self._adapter is None else f" with the adapter {self._adapter.stem}"
        return {
            "token": workspace.token,
            "upload_bytes": self.upload_bytes,
            "upload_files": UPLOAD_FILES,
            "extensions": files.UPLOAD_EXTENSIONS,
            "roots": [root.resolve().name or str(root) for root in self.roots],
            "model": f"{name}{with_adapter}. {self.device_sentence}",
            "start": {"source": "start" if self.image is not None else "sample"},
            "volume": workspace.header,
        }

    def sample(self) -> Volume:
        """The bundled sample, made once."""
        with self._shared_lock:
            if "sample" not in self._shared:
                self._shared["sample"] = torso_phantom()[0]
            return self._shared["sample"]

    def open(self, workspace: Workspace, source: Source) -> dict[str, Any]:
        """Open a volume in a workspace; what it held before is gone.

        Raises:
            VolumeError: it cannot be used, or (SeriesChoice) one of several must be chosen.
        """
        workspace.show("Reading the volume")
        try:
            with self._readers:
                volume, name = self._read(workspace, source)
            self._make_room(workspace, volume)
            workspace.show("Loading the model")
            predictor = VolumePredictor(self._model.result(), cache=self.cache)
            header = volume_header(volume.array, volume.grid, name=name, modality=volume.modality)
            with workspace.lock:
                workspace.take(Session(volume, predictor, refine=False), name, header)
            if source.source == "upload":
                workspace.drop_uploads(source.upload)
            return header
        finally:
            workspace.show("")

    def _make_room(self, workspace: Workspace, volume: Volume) -> None:
        """Room for a volume in the place of that of a workspace."""
        shared = any(volume is each for each in self._shared.values())
        before = workspace.array
        freed = 0 if before is None else before.nbytes
        self.workspaces.make_room(workspace, 0 if shared else max(0, volume.array.nbytes - freed))

    def work(self, workspace: Workspace, job: Callable[[], Result]) -> Future[Result]:
        """Queue a job of a workspace for the model; its memory is looked at when it ends.

        Raises:
            SettingsError: too many of its jobs wait already.
        """

        def whole() -> Result:
            try:
                return job()
            finally:
                self.workspaces.make_room(workspace)

        return self.worker.submit(whole, workspace.token)

    def _read(self, workspace: Workspace, source: Source) -> tuple[Volume, str]:
        if source.source == "sample":
            return self.sample(), SAMPLE_NAME
        choice = {"series": source.series, "frame": source.frame, "channel": source.channel}
        if source.source == "start":
            if self.image is None:
                raise VolumeError("This server was not started with an image; open one from the list.")
            return load_volume(self.image, **choice), files.stem(self.image.name)  # type: ignore[arg-type]
        if source.source == "folder":
            path = files.resolve(self.roots, source.root, source.path)
            return load_volume(path, **choice), files.stem(path.name)  # type: ignore[arg-type]
        with workspace.upload(source.upload) as (path, name):
            return load_volume(path, **choice), files.stem(name)  # type: ignore[arg-type]

    def close(self) -> None:
        """Stop the worker and free the workspaces."""
        self.worker.close()
        self.workspaces.close()
        self.exchange.close()


def _warm_readers() -> None:
    """Import MONAI's readers, which takes seconds, before the first file is opened."""
    import medsam_app.readers  # noqa: F401
