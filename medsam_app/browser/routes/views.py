"""Routes of further views: surfaces of masks, and other frames of a file."""

from __future__ import annotations

import json
import struct

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from medsam_app.browser.protocol.binary import browser_dtype, voxel_blocks
from medsam_app.browser.protocol.request_bodies import Source
from medsam_app.browser.routes.answers import binary
from medsam_app.browser.routes.dependencies import CallerWorkspace, CurrentService
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import PromptError, VolumeError
from medsam_app.measure.surface_mesh import Surface, surface_of

#: Largest number of cached surfaces per open volume.
_MOST_CACHED = 16

router = APIRouter()


@router.get("/surface")
def surface(object: str, workspace: CallerWorkspace) -> Response:
    """Return the surface of an object's mask."""
    return binary(surface_frame(*_surface(workspace, object)))


@router.get("/frame")
def frame(number: int, service: CurrentService, workspace: CallerWorkspace) -> StreamingResponse:
    """Stream the voxels of another frame of the open file."""
    with workspace.lock:
        opened = workspace.require_open()
        volume = opened.volume
        source = Source.model_validate(opened.header["source"])
    with service.readers:
        other_frame, _ = service.read(workspace, source.model_copy(update={"frame": number}))
    if other_frame.grid.difference(volume.grid):
        raise VolumeError(f"Frame {number} lies on another grid than the one that is open; open it instead.")
    dtype = browser_dtype(other_frame.array)
    return StreamingResponse(
        voxel_blocks(other_frame.array, other_frame.grid, dtype),
        media_type="application/octet-stream",
        headers={
            "Content-Length": str(other_frame.array.size * dtype.itemsize),
            "X-Medsam-Dtype": dtype.name,
        },
    )


def _surface(workspace: Workspace, owner: str) -> tuple[str, Surface]:
    """Return the key of an object's mask and the surface of the mask, computed once."""
    with workspace.lock:
        opened = workspace.require_open()
        grid, masks = opened.volume.grid, opened.masks(workspace.show)
    if owner not in masks:
        raise PromptError("This object has no mask yet; click inside it first.")
    key, prediction = masks[owner]
    cache = opened.surfaces
    if key not in cache:
        cache[key] = surface_of(prediction.patch, grid)
        for old_key in list(cache)[:-_MOST_CACHED]:
            cache.pop(old_key, None)
    return key, cache[key]


def surface_frame(key: str, surface: Surface) -> bytes:
    """Return a surface as one frame.

    A frame contains the length of the header (uint32), the header in JSON, vertices (float32) and triangles
    (uint32).
    """
    counts = {"vertices": len(surface.vertices), "triangles": len(surface.triangles)}
    header = json.dumps({"key": key} | counts).encode()
    header += b" " * (-len(header) % 4)  # aligns the arrays to four bytes, as typed arrays require
    vertices = np.ascontiguousarray(surface.vertices, dtype="<f4").tobytes()
    triangles = np.ascontiguousarray(surface.triangles, dtype="<u4").tobytes()
    return struct.pack("<I", len(header)) + header + vertices + triangles
