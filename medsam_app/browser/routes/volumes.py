"""Routes of volumes: begin a session, choose and open a volume, get its voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.protocol import allowed_files
from medsam_app.browser.protocol.binary import voxel_blocks
from medsam_app.browser.protocol.request_bodies import ACTION_BYTES, Source, parse_body, read_body
from medsam_app.browser.routes.dependencies import CallerWorkspace, CurrentService, Token
from medsam_app.browser.security.guard import LOGIN

router = APIRouter()


@router.post("/session")
def begin_session(
    request: Request, service: CurrentService, x_medsam_session: Token = None
) -> dict[str, Any]:
    """Return the facts that a page needs at the start; create a workspace if its token has none."""
    workspace = service.workspaces.get(x_medsam_session) or service.workspaces.create()
    return service.page_facts(workspace) | {"login": request.scope.get(LOGIN)}


@router.get("/progress")
def progress(service: CurrentService, workspace: CallerWorkspace) -> dict[str, Any]:
    """Return the current step of the page's request and the fraction done."""
    text, fraction = workspace.progress
    waiting = service.worker.waiting
    if text and waiting > 1:
        text += f" ({waiting} requests in turn)"
    return {"text": text, "fraction": fraction}


@router.get("/files")
def list_folder(
    service: CurrentService, workspace: CallerWorkspace, root: int = 0, path: str = ""
) -> dict[str, Any]:
    """Return the folders and volumes in a folder of the server."""
    return {"entries": allowed_files.listing(service.roots, root, path)}


@router.post("/open")
async def open_volume(
    request: Request, service: CurrentService, workspace: CallerWorkspace
) -> dict[str, Any]:
    """Open a volume and return its header."""
    source = parse_body(Source, await read_body(request, ACTION_BYTES))
    return {"volume": await run_in_threadpool(service.open, workspace, source)}


@router.get("/volume")
def voxels(workspace: CallerWorkspace) -> StreamingResponse:
    """Stream the voxels of the open volume in the browser's order."""
    with workspace.lock:
        opened = workspace.require_open()
        header, volume = opened.header, opened.volume
    return StreamingResponse(
        voxel_blocks(volume.array, volume.grid, np.dtype(header["dtype"])),
        media_type="application/octet-stream",
        headers={"Content-Length": str(header["bytes"])},
    )
