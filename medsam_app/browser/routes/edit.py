"""Routes beside those of routes.py: an object's history, and label sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.state.workspaces import Workspace
from medsam_app.session.label_set import MOST_BYTES, read_label_set


def add_edit_routes(router: APIRouter, mine: Any) -> None:
    """Add them to a router.

    Args:
        router: where.
        mine: what gives a handler the page's workspace.
    """

    @router.get("/history")
    def history(object: str, workspace: Workspace = mine) -> dict[str, Any]:
        with workspace.lock:
            return {"steps": [asdict(step) for step in workspace.open_session().steps(object)]}

    @router.post("/labels")
    async def labels(request: Request, name: str, workspace: Workspace = mine) -> dict[str, Any]:
        body = b""
        async for block in request.stream():
            body += block
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"A label set is no larger than {MOST_BYTES >> 20} MiB.")
        return {"labels": await run_in_threadpool(_take, workspace, name, body)}


def _take(workspace: Workspace, name: str, body: bytes) -> list[dict[str, Any]]:
    place = workspace.place()
    try:
        ending = ".json" if name.lower().endswith(".json") else ".csv"
        path = place / f"labels{ending}"
        path.write_bytes(body)
        labels = read_label_set(path)
    finally:
        workspace.discard(Path(place))
    with workspace.lock:
        workspace.labels = labels
        if workspace.session is not None:
            workspace.session.labels = labels
    return [asdict(label) for label in labels]
