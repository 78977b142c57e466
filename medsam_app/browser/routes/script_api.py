"""Named endpoints for scripts: open, click, box, undo, fetch the mask. docs/api.md shows them in use.

A script's session is that of its `gradio_client.Client`, whose random id is kept as a page's token is. What
it asks goes the way of a page's actions: the same bounds, the same turns at the model.
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

#: A script's id is at least this long, so that it cannot be guessed, and a page's shorter one is none.
_ID_LENGTH = 32
#: Requests of scripts that Gradio holds at a time, at work and waiting.
AT_A_TIME, MOST_HELD = 32, 256


class Api:
    """Implementation of the endpoints for one server."""

    def __init__(self, service: Service, exchange: Exchange) -> None:
        self.service = service
        self.exchange = exchange

    def workspace(self, request: gr.Request) -> Workspace:
        """The workspace of a script, a new one at its first request."""
        given = str(request.session_hash or "")
        if len(given) < _ID_LENGTH:
            raise PromptError("A script needs a session id of its own; use gradio_client, which makes one.")
        token = "script-" + hashlib.sha256(given.encode()).hexdigest()
        kept = self.service.workspaces
        return kept.get(token) or kept.create(token)

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

    def open(self, source: Source, sent: dict[str, Any] | None, request: gr.Request) -> dict[str, Any]:
        """Open a volume, from an uploaded file if there is one."""
        workspace = self.workspace(request)
        if sent is None:
            return _volume_facts(self.service.open(workspace, source))
        path = self.exchange.sent(str(sent.get("path", "")))
        name = str(sent.get("orig_name") or path.name)
        try:
            if not name.lower().endswith(UPLOADABLE):
                raise PromptError(f"'{name}' is no volume; send one of {', '.join(UPLOADABLE)}.")
            place = workspace.files.new_folder() / safe_name(name)
            path.replace(place)
            key = workspace.files.add(place, name)
        finally:
            path.unlink(missing_ok=True)
        source = source.model_copy(update={"source": "upload", "upload": key})
        return _volume_facts(self.service.open(workspace, source))

    def change(self, request: gr.Request, do: Callable[[Session], object]) -> dict[str, Any]:
        """Change the session in this script's turn, or not at all; return the resulting objects."""
        workspace, opened = self.opened(request)
        session = opened.session

        def work() -> dict[str, Any]:
            with workspace.lock:
                before = session.objects
                try:
                    do(session)
                    return _object_facts(session)
                except MedsamError:
                    if session.objects != before:
                        session.undo()
                    raise

        return self.service.work(workspace, work).result()

    def prompt(self, prompt: AnyPrompt, object: str | None, request: gr.Request) -> dict[str, Any]:
        """Add a prompt to an object, or to the selected one; the first prompt creates one."""

        def add(session: Session) -> None:
            owner = session.get(object) if object else session.selected or session.add_object()
            session.add_prompt(owner.id, prompt)

        return self.change(request, add)

    def mask(self, request: gr.Request) -> dict[str, Any]:
        """The masks of all objects as a file."""
        workspace, opened = self.opened(request)
        session = opened.session

        def write() -> dict[str, Any]:
            self.exchange.sweep()
            path = self.exchange.new(safe_name(f"{opened.name}_mask.nii.gz"))
            save_mask(session.label_map(), session.volume, path, label_names=session.label_names)
            return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

        return self.service.work(workspace, write).result()


def add_endpoints(api: Api) -> None:
    """Declare the endpoints on the page that is being built."""

    def open(
        request: gr.Request,
        path: str = "",
        folder: int = 0,
        upload: dict[str, Any] | None = None,
        series: str | None = None,
        frame: int | None = None,
        channel: int | None = None,
    ) -> dict[str, Any]:
        """Open a file of a folder that the server shows, or an upload; neither opens the sample."""
        kind: Any = "folder" if path else "start" if api.service.image is not None else "sample"
        source = Source(source=kind, root=folder, path=path, series=series, frame=frame, channel=channel)
        return api.open(source, upload, request)

    def list_files(request: gr.Request, path: str = "", folder: int = 0) -> list[dict[str, Any]]:
        """Folders and volumes in a folder that the server shows."""
        api.workspace(request)
        return allowed_files.listing(api.service.roots, folder, path)

    def click(
        request: gr.Request, i: float, j: float, k: float, positive: bool = True, object: str | None = None
    ) -> dict[str, Any]:
        """Click at a voxel (i, j, k) of the file, inside the object or outside it."""
        return api.prompt(Point(coordinates=(i, j, k), positive=positive), object, request)

    def box(
        request: gr.Request, lower: list[float], upper: list[float], object: str | None = None
    ) -> dict[str, Any]:
        """A box between two voxels (i, j, k) of the file, both in it."""
        return api.prompt(Box.model_validate({"lower": lower, "upper": upper}), object, request)

    def new_object(request: gr.Request, name: str | None = None, label: int | None = None) -> dict[str, Any]:
        """Begin another object, which clicks without an id belong to from now on."""

        def add(session: Session) -> None:
            session.add_object(name, label=label)

        return api.change(request, add)

    def undo(request: gr.Request) -> dict[str, Any]:
        """Take the last change back."""
        return api.change(request, Session.undo)

    def state(request: gr.Request) -> dict[str, Any]:
        """The objects as they are."""
        return api.change(request, lambda session: None)

    def save_mask(request: gr.Request) -> dict[str, Any]:
        """The masks as a NIfTI file on the image's grid."""
        return api.mask(request)

    def close(request: gr.Request) -> None:
        """Release the server's state for this script."""
        api.service.workspaces.end(api.workspace(request))

    for endpoint in (open, list_files, click, box, new_object, undo, state, save_mask, close):
        gr.api(
            _with_sentences(endpoint),
            api_name=endpoint.__name__,
            concurrency_limit=AT_A_TIME,
            concurrency_id="model",
        )


def _with_sentences(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an endpoint so that its errors reach the script as a sentence."""

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
    """Return name, modality, and shape, spacing in mm and orientation of the file's axes."""
    return {
        "name": header["name"],
        "modality": header["modality"],
        "shape": list(header["file_shape"]),
        "spacing": list(header["file_spacing"]),
        "orientation": header["orientation"],
    }


def _object_facts(session: Session) -> dict[str, Any]:
    """Return the objects for a script; see docs/api.md."""
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
