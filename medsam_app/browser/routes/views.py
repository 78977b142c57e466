"""What a page looks at beside the planes: surfaces, another mask to compare with, other frames."""

from __future__ import annotations

import json
import struct
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.protocol.binary import browser_dtype, voxel_blocks
from medsam_app.browser.protocol.request_bodies import Source, parse_body, read_body
from medsam_app.browser.routes import compare as comparing
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import PromptError, VolumeError
from medsam_app.measure.surface_mesh import Surface, surface_of

#: Surfaces that are kept in a workspace.
_MOST_KEPT = 16
_REQUEST_BYTES = 1 << 16


class OtherMask(BaseModel):
    """A mask file to compare with: of a folder of the server or an upload."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["folder", "upload"]
    root: int = 0
    path: str = ""
    upload: str = ""


class Comparison(BaseModel):
    """What is to be compared: with a file, or with the one that was given before.

    Attributes:
        tolerance_mm: by which surfaces may be apart and still agree; None for the largest side of a voxel.
        have: keys of the other file's masks that the page holds.
    """

    model_config = ConfigDict(extra="forbid")
    other: OtherMask | None = None
    tolerance_mm: float | None = Field(None, gt=0, le=1000)
    have: list[str] = Field(default_factory=list, max_length=100_000)


def add_seeing(router: APIRouter, mine: Any, service: Service) -> None:
    """Add the routes; `mine` gives the workspace of whoever asks."""

    @router.get("/surface")
    def surface(object: str, workspace: Workspace = mine) -> Response:
        key, made = _surface(workspace, object)
        return Response(surface_frame(key, made), media_type="application/octet-stream")

    @router.post("/compare")
    async def compare(request: HttpRequest, workspace: Workspace = mine) -> Response:
        asked = parse_body(Comparison, await read_body(request, _REQUEST_BYTES << 6))

        def work() -> bytes:
            if asked.other is not None:
                comparing.open_other(workspace, service, **asked.other.model_dump())
            return comparing.compared(workspace, tolerance=asked.tolerance_mm, have=set(asked.have))

        return Response(await run_in_threadpool(work), media_type="application/octet-stream")

    @router.delete("/compare")
    def forget(workspace: Workspace = mine) -> dict[str, bool]:
        workspace.other = None
        return {"forgotten": True}

    @router.get("/frame")
    def frame(number: int, workspace: Workspace = mine) -> StreamingResponse:
        with workspace.lock:
            volume = workspace.open_session().volume
            assert workspace.header is not None
            source = Source.model_validate(workspace.header["source"])
        with service.readers:
            other, _ = service.read(workspace, source.model_copy(update={"frame": number}))
        if other.grid.difference(volume.grid):
            raise VolumeError(
                f"Frame {number} lies on another grid than the one that is open; open it instead."
            )
        dtype = browser_dtype(other.array)
        return StreamingResponse(
            voxel_blocks(other.array, other.grid, dtype),
            media_type="application/octet-stream",
            headers={
                "Content-Length": str(other.array.size * dtype.itemsize),
                "X-Medsam-Dtype": dtype.name,
            },
        )


def _surface(workspace: Workspace, owner: str) -> tuple[str, Surface]:
    """The key of an object's mask, and its surface, which is made once."""
    with workspace.lock:
        grid, masks = workspace.open_session().volume.grid, workspace.masks()
    if owner not in masks:
        raise PromptError("This object has no mask yet; click inside it first.")
    key, made = masks[owner]
    kept = workspace.surfaces
    if key not in kept:
        kept[key] = surface_of(made.patch, grid)
        for old in list(kept)[:-_MOST_KEPT]:
            kept.pop(old, None)
    return key, kept[key]


def surface_frame(key: str, surface: Surface) -> bytes:
    """A surface in one answer: length of the header, the header in JSON, vertices, triangles."""
    counts = {"vertices": len(surface.vertices), "triangles": len(surface.triangles)}
    header = json.dumps({"key": key} | counts).encode()
    header += b" " * (-len(header) % 4)  # so that the arrays begin at a multiple of four
    vertices = np.ascontiguousarray(surface.vertices, dtype="<f4").tobytes()
    triangles = np.ascontiguousarray(surface.triangles, dtype="<u4").tobytes()
    return struct.pack("<I", len(header)) + header + vertices + triangles
