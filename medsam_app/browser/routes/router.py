"""Our own routes beside Gradio's: voxels and masks in binary, actions and files in JSON.

A page proves whose it is with its token in a header, never in an address. Handlers that work are plain
functions in threads; the model runs in its own (see worker.py), so nobody's click blocks the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from medsam_app.atomic import as_text
from medsam_app.browser.protocol import allowed_files
from medsam_app.browser.protocol.binary import voxel_blocks
from medsam_app.browser.protocol.request_bodies import Source, parse_body, read_body
from medsam_app.browser.routes.actions import Request, perform, state_frame
from medsam_app.browser.routes.downloads import add_saves
from medsam_app.browser.routes.edit import add_edit_routes
from medsam_app.browser.routes.uncertainty import heat
from medsam_app.browser.routes.uploads import receive_file, receive_folder
from medsam_app.browser.routes.views import add_seeing
from medsam_app.browser.routes.worklist import add_worklist_routes
from medsam_app.browser.security.guard import LOGIN
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError, PromptError, PromptFileError, SeriesChoice

#: Largest body of an action, and of a prompt file (which may hold masks).
ACTION_BYTES = 8 << 20
PROMPT_FILE_BYTES = 128 << 20
#: What a page proves itself with, and the number of the volume that it shows, which scripts leave out.
Token = Annotated[str | None, Header()]
Opened = Annotated[int | None, Header()]


def make_router(service: Service) -> APIRouter:
    """The routes of a server."""
    router = APIRouter(prefix="/medsam/api")

    def looked_at(x_medsam_session: Token = None) -> Workspace:
        return known(x_medsam_session, at_work=False)

    def workspace_of(x_medsam_session: Token = None, x_medsam_volume: Opened = None) -> Workspace:
        workspace = known(x_medsam_session, at_work=True)
        workspace.check(x_medsam_volume)
        return workspace

    def known(token: str | None, *, at_work: bool) -> Workspace:
        workspace = service.workspaces.get(token, at_work=at_work)
        if workspace is None:
            raise HTTPException(401, service.workspaces.why_ended(token))
        return workspace

    mine = Depends(workspace_of)

    @router.post("/session")
    def session(request: HttpRequest, x_medsam_session: Token = None) -> dict[str, Any]:
        workspace = service.workspaces.get(x_medsam_session) or service.workspaces.create()
        return service.hello(workspace) | {"login": request.scope.get(LOGIN)}

    @router.get("/progress")
    def progress(workspace: Workspace = mine) -> dict[str, Any]:
        text, fraction = workspace.progress
        waiting = service.worker.waiting
        if text and waiting > 1:
            text += f" ({waiting} requests in turn)"
        return {"text": text, "fraction": fraction}

    @router.get("/files")
    def folder(root: int = 0, path: str = "", workspace: Workspace = mine) -> dict[str, Any]:
        return {"entries": allowed_files.listing(service.roots, root, path)}

    @router.post("/open")
    async def open_volume(request: HttpRequest, workspace: Workspace = mine) -> dict[str, Any]:
        source = parse_body(Source, await read_body(request, ACTION_BYTES))
        return {"volume": await run_in_threadpool(service.open, workspace, source)}

    @router.post("/upload")
    async def upload(request: HttpRequest, name: str, workspace: Workspace = mine) -> dict[str, str]:
        announced = request.headers.get("content-length", "")
        limit = service.upload_bytes
        return {
            "upload": await receive_file(workspace, name, request.stream(), limit=limit, announced=announced)
        }

    @router.post("/upload-folder")
    async def upload_folder(request: HttpRequest, name: str, workspace: Workspace = mine) -> dict[str, str]:
        return {"upload": await receive_folder(workspace, name, request.stream(), limit=service.upload_bytes)}

    @router.get("/volume")
    def voxels(workspace: Workspace = mine) -> StreamingResponse:
        with workspace.lock:
            header = workspace.header
            if header is None:
                raise PromptError("No volume is open; open one first.")
            volume = workspace.volume
        return StreamingResponse(
            voxel_blocks(volume.array, volume.grid, np.dtype(header["dtype"])),
            media_type="application/octet-stream",
            headers={"Content-Length": str(header["bytes"])},
        )

    @router.post("/act")
    async def act(
        request: HttpRequest, workspace: Workspace = mine, x_medsam_volume: Opened = None
    ) -> Response:
        asked = parse_body(Request, await read_body(request, ACTION_BYTES))

        def work() -> bytes:
            return perform(workspace, asked.action, asked.have, opened=x_medsam_volume)

        quick = asked.action.do in ("select", "change_object", "add_object")
        if quick or (asked.action.do == "look" and not workspace.restored):
            return _binary(await run_in_threadpool(work))
        workspace.show("Waiting for the model" if service.worker.waiting else "Segmenting")
        return _binary(await _answer(service, workspace, work))

    @router.get("/doubt")
    async def doubt(object: str, workspace: Workspace = mine) -> Response:
        return _binary(await _answer(service, workspace, lambda: heat(workspace, object)))

    add_edit_routes(router, mine)

    @router.post("/prompts")
    async def replay(request: HttpRequest, have: str = "", workspace: Workspace = mine) -> Response:
        body = await read_body(request, PROMPT_FILE_BYTES)
        work: Callable[[], bytes] = lambda: _replay(workspace, body, have.split(","))  # noqa: E731
        return _binary(await _answer(service, workspace, work))

    add_saves(router, mine)
    add_seeing(router, mine, service)
    add_worklist_routes(router, service, mine, Depends(looked_at))
    return router


def add_error_pages(app: FastAPI) -> None:
    """Answer errors with a sentence, and those of the program without what is inside it."""

    @app.exception_handler(MedsamError)
    def user_error(request: HttpRequest, error: MedsamError) -> JSONResponse:
        body: dict[str, Any] = {"error": as_text(str(error))}
        if isinstance(error, SeriesChoice):
            body["choice"] = {"option": error.option, "choices": error.choices}
        return JSONResponse(body, 422)

    @app.exception_handler(HTTPException)
    def http_error(request: HttpRequest, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    def unclear(request: HttpRequest, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "The server does not understand this request; reload the page."}, 422)

    @app.exception_handler(500)
    def own_error(request: HttpRequest, error: Exception) -> JSONResponse:
        return JSONResponse(
            {"error": "Something went wrong on the server; its log says what. Your prompts are kept."}, 500
        )


async def _answer(service: Service, workspace: Workspace, work: Callable[[], bytes]) -> bytes:
    """What the model's thread makes, when it is this workspace's turn; no thread waits for it."""
    return await asyncio.wrap_future(service.work(workspace, work))


def _binary(body: bytes) -> Response:
    return Response(body, media_type="application/octet-stream")


def _replay(workspace: Workspace, body: bytes, have: list[str]) -> bytes:
    with workspace.lock:
        session = workspace.session
        if session is None:
            raise PromptError("No volume is open; open the image that the prompts belong to first.")
        path = workspace.folder / "opened.prompts.json"
        path.write_bytes(body)
        try:
            found = session.read_prompts(path)
        except PromptFileError as error:
            raise PromptFileError(str(error).replace(str(path), "you opened")) from None
        finally:
            path.unlink(missing_ok=True)
        before = session.overlap, session.refine, session.by_label
        session.replace_objects(found.objects, change="open a prompt file")
        held = found.settings
        session.overlap, session.refine, session.by_label = held.overlap, held.refine, held.by_label
        try:
            return state_frame(workspace, have, messages=list(found.notes))
        except MedsamError:
            session.undo()
            session.overlap, session.refine, session.by_label = before
            raise
