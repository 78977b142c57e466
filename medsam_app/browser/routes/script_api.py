"""Named endpoints for scripts: open, click, box, undo, save the mask.

See docs/api.md for examples. A script's session is the session of its `gradio_client.Client`, whose random id
serves as the token of its workspace. Requests of scripts and actions of pages have the same limits and share
the model's queue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr
from fastapi import HTTPException
from pydantic import ValidationError

from medsam_app.browser.protocol import allowed_files
from medsam_app.browser.protocol.allowed_files import safe_name
from medsam_app.browser.protocol.request_bodies import Source
from medsam_app.browser.protocol.script_files import Exchange
from medsam_app.browser.state.open_volume import OpenVolume
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError, PromptError
from medsam_app.io.formats import UPLOADABLE
from medsam_app.io.writing import save_mask
from medsam_app.prompts.types import AnyPrompt, Box, Point
from medsam_app.session.session import Session

#: Shortest id of a script. Such an id cannot be guessed, and the shorter ids of Gradio's pages are refused.
_ID_LENGTH = 32
#: Requests of scripts that Gradio runs at the same time, and that it queues.
MAX_CONCURRENT, MAX_QUEUED = 32, 256


class Api:
    """Implementation of the endpoints for one server."""

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self.service = service
        self.exchange = exchange

    def workspace(self, request: gr.Request) -> Workspace:
        """Return the workspace of a script; create it on the first request.

        Raises:
            PromptError: the session id of the script is too short.
        """
        session_id = str(request.session_hash or "")
        if len(session_id) < _ID_LENGTH:
            raise PromptError("A script needs a session id of its own; use gradio_client, which makes one.")
        token = "script-" + hashlib.sha256(session_id.encode()).hexdigest()
        registry = self.service.workspaces
        return registry.get(token) or registry.create(token)

    def opened(self, request: gr.Request) -> tuple[Workspace, OpenVolume]:
        """Return a script's workspace and the volume that is open in it.

        Raises:
            PromptError: no volume is open.
        """
        workspace = self.workspace(request)
        opened = workspace.opened
        if opened is None:
            raise PromptError("No volume is open in this session; call /open first.")
        return workspace, opened

    def open(self, source: Source, upload: dict[str, Any] | None, request: gr.Request) -> dict[str, Any]:
        """Open a volume, from an uploaded file if there is one; return facts about it."""
        workspace = self.workspace(request)
        if upload is None:
            return _volume_facts(self.service.open(workspace, source))
        path = self.exchange.sent_file(str(upload.get("path", "")))
        name = str(upload.get("orig_name") or path.name)
        try:
            if not name.lower().endswith(UPLOADABLE):
                raise PromptError(f"'{name}' is no volume; send one of {', '.join(UPLOADABLE)}.")
            stored = workspace.files.new_folder() / safe_name(name)
            path.replace(stored)
            key = workspace.files.add(stored, name)
        finally:
            path.unlink(missing_ok=True)
        source = source.model_copy(update={"source": "upload", "upload": key})
        return _volume_facts(self.service.open(workspace, source))

    def change(self, request: gr.Request, action: Callable[[Session], object]) -> dict[str, Any]:
        """Apply an action to the session at the script's turn; return the resulting objects.

        On an error, the session is unchanged.
        """
        workspace, opened = self.opened(request)
        session = opened.session

        def work() -> dict[str, Any]:
            with workspace.lock:
                before = session.objects
                try:
                    action(session)
                    return _object_facts(session)
                except MedsamError:
                    if session.objects != before:
                        session.undo()
                    raise

        return self.service.work(workspace, work).result()

    def prompt(self, prompt: AnyPrompt, object: str | None, request: gr.Request) -> dict[str, Any]:
        """Add a prompt to an object; without id, to the selected object or to a new one."""

        def add(session: Session) -> None:
            owner = session.get(object) if object else session.selected or session.add_object()
            session.add_prompt(owner.id, prompt)

        return self.change(request, add)

    @staticmethod
    def object_id(session: Session, object: str | None) -> str:
        """Return the id of an object; without id, of the selected one."""
        if object:
            return session.get(object).id
        if session.selected is None:
            raise PromptError("There is no object yet; click first.")
        return session.selected.id

    def alternatives(self, object: str | None, request: gr.Request) -> list[dict[str, Any]]:
        """Return number, volume, quality and state of the masks among which `/choose` chooses."""
        workspace, opened = self.opened(request)
        session = opened.session

        def find() -> list[dict[str, Any]]:
            with workspace.lock:
                owner = self.object_id(session, object)
                chosen = session.choice(owner)
                return [
                    {
                        "number": mask.number,
                        "volume_ml": mask.prediction.volume_ml,
                        "score": mask.prediction.score,
                        "shown": mask.shown if chosen is None else mask.number == chosen[0],
                    }
                    for mask in session.alternatives(owner)
                ]

        return self.service.work(workspace, find).result()

    def mask(self, request: gr.Request) -> dict[str, Any]:
        """Write the label map of all objects to a file; return Gradio's description of the file."""
        workspace, opened = self.opened(request)
        session = opened.session

        def write() -> dict[str, Any]:
            self.exchange.sweep()
            path = self.exchange.new_path(safe_name(f"{opened.name}_mask.nii.gz"))
            save_mask(session.label_map(), session.volume, path, label_names=session.label_names)
            return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

        return self.service.work(workspace, write).result()


def add_endpoints(api: Api) -> None:
    """Add the endpoints to the Gradio page that is being built."""

    def open(
        request: gr.Request,
        path: str = "",
        folder: int = 0,
        upload: dict[str, Any] | None = None,
        series: str | None = None,
        frame: int | None = None,
        channel: int | None = None,
    ) -> dict[str, Any]:
        """Open a file in a folder of the server, or an upload; by default the server's image or sample."""
        kind: Any = "folder" if path else "start" if api.service.image is not None else "sample"
        source = Source(source=kind, root=folder, path=path, series=series, frame=frame, channel=channel)
        return api.open(source, upload, request)

    def list_files(request: gr.Request, path: str = "", folder: int = 0) -> list[dict[str, Any]]:
        """List the folders and volumes in a folder of the server."""
        api.workspace(request)
        return allowed_files.listing(api.service.roots, folder, path)

    def click(
        request: gr.Request, i: float, j: float, k: float, positive: bool = True, object: str | None = None
    ) -> dict[str, Any]:
        """Click on a voxel (i, j, k) of the file, inside or outside the object."""
        return api.prompt(Point(coordinates=(i, j, k), positive=positive), object, request)

    def box(
        request: gr.Request, lower: list[float], upper: list[float], object: str | None = None
    ) -> dict[str, Any]:
        """Draw a box between two voxels (i, j, k) of the file, both inclusive."""
        return api.prompt(Box.model_validate({"lower": lower, "upper": upper}), object, request)

    def alternatives(request: gr.Request, object: str | None = None) -> list[dict[str, Any]]:
        """Return the masks that the only prompt of an object may mean, by size."""
        return api.alternatives(object, request)

    def choose(request: gr.Request, number: int, object: str | None = None) -> dict[str, Any]:
        """Choose one of the alternatives by its number; a later click corrects it."""

        def choose_number(session: Session) -> None:
            session.choose(api.object_id(session, object), number)

        return api.change(request, choose_number)

    def new_object(request: gr.Request, name: str | None = None, label: int | None = None) -> dict[str, Any]:
        """Add an object and select it; clicks without an object id now belong to it."""

        def add(session: Session) -> None:
            session.add_object(name, label=label)

        return api.change(request, add)

    def undo(request: gr.Request) -> dict[str, Any]:
        """Undo the last change."""
        return api.change(request, Session.undo)

    def state(request: gr.Request) -> dict[str, Any]:
        """Return the current objects."""
        return api.change(request, lambda session: None)

    def save_mask(request: gr.Request) -> dict[str, Any]:
        """Return the masks as a NIfTI file on the grid of the image."""
        return api.mask(request)

    def close(request: gr.Request) -> None:
        """Release the server's state for this script."""
        api.service.workspaces.end(api.workspace(request))

    for endpoint in (
        open,
        list_files,
        click,
        box,
        alternatives,
        choose,
        new_object,
        undo,
        state,
        save_mask,
        close,
    ):
        gr.api(
            _with_error_sentences(endpoint),
            api_name=endpoint.__name__,
            concurrency_limit=MAX_CONCURRENT,
            concurrency_id="model",
        )


def _with_error_sentences(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an endpoint so that its errors reach the script as one sentence."""

    @wraps(endpoint)
    def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return endpoint(*args, **kwargs)
        except MedsamError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except HTTPException as error:
            raise gr.Error(str(error.detail), print_exception=False) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise gr.Error(f"{where}: {first['msg']}.", print_exception=False) from None

    return answer


def _volume_facts(header: dict[str, Any]) -> dict[str, Any]:
    """Return name, modality, and the shape, spacing in mm and orientation along the file's axes."""
    return {
        "name": header["name"],
        "modality": header["modality"],
        "shape": list(header["file_shape"]),
        "spacing": list(header["file_spacing"]),
        "orientation": header["orientation"],
    }


def _object_facts(session: Session) -> dict[str, Any]:
    """Return the objects and the selected one for a script; see docs/api.md."""
    facts = []
    for item in session.objects:
        prediction = session.prediction(item.id)
        facts.append(
            {
                "id": item.id,
                "name": item.name,
                "label": item.label,
                "prompts": len(item.prompts),
                "voxels": 0 if prediction is None else prediction.voxels,
                "volume_ml": 0.0 if prediction is None else prediction.volume_ml,
                "score": None if prediction is None else prediction.score,
                "unmet": [] if prediction is None else [int(n) for n in prediction.unmet],
            }
        )
    selected = session.selected
    return {"objects": facts, "selected": selected.id if selected else None}
