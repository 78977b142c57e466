"""Routes that change the session: actions, and replay of prompt files."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.protocol.request_bodies import ACTION_BYTES, parse_body, read_body
from medsam_app.browser.routes.actions import ActionRequest, perform, state_frame
from medsam_app.browser.routes.answers import binary, run_on_model
from medsam_app.browser.routes.dependencies import CallerWorkspace, CurrentService, VolumeNumber
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError, PromptError

#: Size of the largest prompt file in bytes; it may contain masks.
PROMPT_FILE_BYTES = 128 << 20
#: Actions that do not need the model.
_QUICK = ("select", "change_object", "add_object")

router = APIRouter()


@router.post("/act")
async def act(
    request: Request,
    service: CurrentService,
    workspace: CallerWorkspace,
    x_medsam_volume: VolumeNumber = None,
) -> Response:
    """Apply an action and return the state with the masks that the page has not cached."""
    body = parse_body(ActionRequest, await read_body(request, ACTION_BYTES))

    def work() -> bytes:
        return perform(workspace, body.action, body.have, number=x_medsam_volume)

    opened = workspace.opened
    restored = opened is not None and opened.restored
    if body.action.do in _QUICK or (body.action.do == "look" and not restored):
        return binary(await run_in_threadpool(work))
    workspace.show("Waiting for the model" if service.worker.waiting else "Segmenting")
    return await run_on_model(service, workspace, work)


@router.post("/prompts")
async def replay(
    request: Request, service: CurrentService, workspace: CallerWorkspace, have: str = ""
) -> Response:
    """Replace the objects with those of a prompt file and return the state.

    `have` lists the keys of the masks that the page has cached, separated by commas.
    """
    body = await read_body(request, PROMPT_FILE_BYTES)
    return await run_on_model(service, workspace, lambda: _replay(workspace, body, have.split(",")))


def _replay(workspace: Workspace, body: bytes, have: list[str]) -> bytes:
    with workspace.lock:
        opened = workspace.opened
        if opened is None:
            raise PromptError("No volume is open; open the image that the prompts belong to first.")
        session = opened.session
        replay = session.parse_prompts(body, title="you opened", name="opened.prompts.json")
        previous_settings = session.settings
        session.replay(replay, change="open a prompt file")
        try:
            return state_frame(workspace, have, messages=list(replay.notes))
        except MedsamError:
            session.undo()
            session.settings = previous_settings
            raise
