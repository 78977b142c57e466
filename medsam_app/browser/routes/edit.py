"""Routes of the history of an object and of label sets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.routes.dependencies import CallerWorkspace
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.session.label_set import MOST_BYTES, read_label_set

router = APIRouter()


@router.get("/history")
def history(object: str, workspace: CallerWorkspace) -> dict[str, Any]:
    """Return the steps of an object's history."""
    with workspace.lock:
        return {"steps": [asdict(step) for step in workspace.require_open().session.steps(object)]}


@router.post("/labels")
async def labels(request: Request, name: str, workspace: CallerWorkspace) -> dict[str, Any]:
    """Use the label set in the request's body and return its labels."""
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"A label set is no larger than {MOST_BYTES >> 20} MiB.")
    return {"labels": await run_in_threadpool(_use_labels, workspace, name, body)}


def _use_labels(workspace: Workspace, name: str, body: bytes) -> list[dict[str, Any]]:
    folder = workspace.files.new_folder()
    try:
        ending = ".json" if name.lower().endswith(".json") else ".csv"
        path = folder / f"labels{ending}"
        path.write_bytes(body)
        labels = read_label_set(path)
    finally:
        workspace.files.discard(folder)
    with workspace.lock:
        workspace.labels = labels
        opened = workspace.opened
        if opened is not None:
            opened.session.labels = labels
    return [asdict(label) for label in labels]
