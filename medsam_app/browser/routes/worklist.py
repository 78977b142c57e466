"""Routes of the worklist: its rows, opening a case, and saying how far a case is."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import APIRouter, Body, Depends
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field

from medsam_app.browser.security.guard import LOGIN
from medsam_app.browser.state.case_opening import open_case
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.worklists import rows
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import SettingsError, WorklistError
from medsam_app.worklist.case_session import CaseWork
from medsam_app.worklist.rows import State
from medsam_app.worklist.store import Worklist

_LONGEST_WHO = 60


def who_asks(request: HttpRequest) -> str:
    """The name of who is logged in, otherwise the name that the page says."""
    login: str | None = request.scope.get(LOGIN)
    said = login or unquote(request.headers.get("x-medsam-who", ""))
    return "".join(letter for letter in said if letter.isprintable())[:_LONGEST_WHO].strip()


Who = Annotated[str, Depends(who_asks)]


class Folder(BaseModel):
    """A folder within those that the server shows."""

    model_config = ConfigDict(extra="forbid")
    root: int
    path: str = Field(max_length=4096)


class Chosen(Folder):
    """A case of a worklist, and which part of its file."""

    name: str = Field(max_length=4096)
    series: str | None = None
    frame: int | None = None
    channel: int | None = None


class Judged(Folder):
    """How far a case is.

    Attributes:
        version: of the case that this is said of.
        empty: whether a case may be accepted in which nothing is segmented.
    """

    name: str = Field(max_length=4096)
    state: State
    version: int
    empty: bool = False


class Taught(Folder):
    """What is to be done about teaching."""

    what: Literal["start", "cancel", "resume", "use", "drop"]
    minutes: float = Field(default=20.0, gt=0, le=10_000)


class Resolved(BaseModel):
    """What is to become of work on a case that somebody else changed meanwhile."""

    model_config = ConfigDict(extra="forbid")
    keep: Literal["mine", "theirs"]


def add_worklist_routes(router: APIRouter, service: Service, mine: Any, looked_at: Any) -> None:
    """Add the routes.

    Args:
        mine: the dependency that gives a request's workspace.
        looked_at: the same for pages that ask by themselves, which does not count as work.
    """
    post = router.post

    def worklist_of(folder: Folder, *, refresh: bool = False) -> Worklist:
        return service.worklists.get(folder.root, folder.path, refresh=refresh)

    @post("/worklist")
    def opened(
        folder: Annotated[Folder, Body()],
        stamp: str = "",
        refresh: bool = False,
        workspace: Workspace = looked_at,
    ) -> dict[str, Any]:
        worklist = worklist_of(folder, refresh=refresh)
        return {"stamp": stamp} if stamp and stamp == worklist.stamp() else rows(worklist)

    @post("/worklist/case")
    def case(chosen: Annotated[Chosen, Body()], who: Who, workspace: Workspace = mine) -> dict[str, Any]:
        choice = {"series": chosen.series, "frame": chosen.frame, "channel": chosen.channel}
        header = open_case(
            service,
            workspace,
            worklist_of(chosen),
            chosen.name,
            root=chosen.root,
            who=who,
            choice=choice,
        )
        return {"volume": header}

    @post("/worklist/state")
    def judge(judged: Annotated[Judged, Body()], who: Who, workspace: Workspace = mine) -> dict[str, Any]:
        worklist = worklist_of(judged)
        if judged.state == "accepted":
            _accept(service, workspace, worklist, judged, who)
        else:
            worklist.set_state(judged.name, judged.state, who=who, seen=judged.version)
        return rows(worklist)

    @post("/worklist/resolve")
    def resolve(
        resolved: Annotated[Resolved, Body()], who: Who, workspace: Workspace = mine
    ) -> dict[str, Any]:
        with workspace.lock:
            work = _work(workspace)
            assert workspace.session is not None
            work.who = who
            if resolved.keep == "mine":
                work.keep(workspace.session, anyway=True)
            else:
                workspace.notes += work.restore(workspace.session, workspace.folder)
        return {}

    @post("/worklist/teaching")
    def teaching(
        folder: Annotated[Folder, Body()], log: bool = False, workspace: Workspace = looked_at
    ) -> dict[str, Any]:
        return service.teachings.said(worklist_of(folder), log=log)

    @post("/worklist/teach")
    def teach(taught: Annotated[Taught, Body()], who: Who, workspace: Workspace = mine) -> dict[str, Any]:
        worklist = worklist_of(taught)
        service.teachings.do(worklist, taught.what, minutes=taught.minutes, who=who)
        return service.teachings.said(worklist, log=False)


def _work(workspace: Workspace) -> CaseWork:
    if workspace.case is None or workspace.session is None:
        raise WorklistError("No case of a worklist is open; open one from the list.")
    return workspace.case


def _accept(service: Service, workspace: Workspace, worklist: Worklist, judged: Judged, who: str) -> None:
    work = _work(workspace)
    session = workspace.session
    assert session is not None
    if work.worklist is not worklist or work.name != judged.name:
        raise WorklistError(f"'{judged.name}' is not the case that is open; open it before accepting it.")
    if not judged.empty and not any(each.has_start for each in session.objects):
        raise SettingsError(
            "There is nothing in this case yet; click, or say that it is to be accepted empty."
        )
    work.who = who
    workspace.show("Writing the mask")
    try:
        service.work(workspace, workspace.masks).result()  # not under the lock, which the model may wait for
        with workspace.lock:
            if workspace.case is not work:
                raise WorklistError(
                    f"Another case was opened before '{judged.name}' was accepted; open it again."
                )
            work.accept(session)
    finally:
        workspace.show("")
