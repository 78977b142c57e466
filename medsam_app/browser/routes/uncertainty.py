"""Route of the uncertainty map of an object."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from medsam_app.browser.protocol.binary import frame
from medsam_app.browser.routes.answers import run_on_model
from medsam_app.browser.routes.dependencies import CallerWorkspace, CurrentService
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import PromptError

router = APIRouter()


@router.get("/doubt")
async def uncertainty(object: str, service: CurrentService, workspace: CallerWorkspace) -> Response:
    """Return the uncertainty map of an object; see `uncertainty_frame`."""
    return await run_on_model(service, workspace, lambda: uncertainty_frame(workspace, object))


def uncertainty_frame(workspace: Workspace, object_id: str) -> bytes:
    """Return a frame with the position of the map in the browser's order and its bytes, x running fastest.

    In the header, `worst` is the most uncertain voxel in the browser's indices, null if there is none.

    Raises:
        PromptError: no volume is open, or the object does not exist or has no mask yet.
    """
    with workspace.lock:
        session = workspace.require_open().session
        workspace.show("Looking for doubt")
        try:
            doubt = session.doubt(object_id)
        finally:
            workspace.show("")
        if doubt is None:
            raise PromptError("This object has no mask yet; click inside it first.")
        ras = session.volume.grid.ras
        corners = ras.points_from_file(
            [
                doubt.start,
                [first + size - 1 for first, size in zip(doubt.start, doubt.values.shape, strict=True)],
            ]
        )
        values = ras.from_file(doubt.values)
        worst = None if doubt.worst is None else [int(v) for v in ras.points_from_file([doubt.worst])[0]]
        part = {
            "key": "heat",
            "start": [int(v) for v in corners.min(axis=0)],
            "size": list(values.shape),
            "bytes": values.size,
            "deflated": False,
        }
        return frame({"worst": worst}, [(part, values.tobytes(order="F"))])
