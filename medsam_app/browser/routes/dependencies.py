"""Dependencies of route handlers: the service, and the caller's workspace and name.

A page sends its token in a header, never in a URL.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Header, HTTPException, Request

from medsam_app.browser.security.guard import LOGIN
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace

_LONGEST_NAME = 60

#: Token of the page.
Token = Annotated[str | None, Header()]
#: Number of the volume that the page shows; scripts do not send it.
VolumeNumber = Annotated[int | None, Header()]


async def service_of(request: Request) -> Service:
    """Return the service of the app that answers a request."""
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(service_of)]


def workspace_of(
    service: CurrentService, x_medsam_session: Token = None, x_medsam_volume: VolumeNumber = None
) -> Workspace:
    """Return the caller's workspace; the request counts as use of it.

    Raises:
        HTTPException: no workspace has this token (401), or another volume is open in it (409).
    """
    workspace = _require_workspace(service, x_medsam_session, active=True)
    workspace.check(x_medsam_volume)
    return workspace


def polled_workspace_of(service: CurrentService, x_medsam_session: Token = None) -> Workspace:
    """Return the workspace of a page that polls; the request does not count as use of it.

    Raises:
        HTTPException: no workspace has this token (401).
    """
    return _require_workspace(service, x_medsam_session, active=False)


def _require_workspace(service: Service, token: str | None, *, active: bool) -> Workspace:
    workspace = service.workspaces.get(token, active=active)
    if workspace is None:
        raise HTTPException(401, service.workspaces.why_ended(token))
    return workspace


CallerWorkspace = Annotated[Workspace, Depends(workspace_of)]
PolledWorkspace = Annotated[Workspace, Depends(polled_workspace_of)]


def caller_name_of(request: Request) -> str:
    """Return the login name of the caller; without login, the name that the page sends."""
    login: str | None = request.scope.get(LOGIN)
    name = login or unquote(request.headers.get("x-medsam-who", ""))
    return "".join(letter for letter in name if letter.isprintable())[:_LONGEST_NAME].strip()


CallerName = Annotated[str, Depends(caller_name_of)]
