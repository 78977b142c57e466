"""Routes of worklists: rows, cases, their states, and teaching."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from medsam_app.browser.routes.dependencies import (
    CallerName,
    CallerWorkspace,
    CurrentService,
    PolledWorkspace,
)
from medsam_app.browser.state.case_opening import open_case
from medsam_app.browser.state.open_volume import OpenVolume
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.worklists import rows
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import SettingsError, WorklistError
from medsam_app.worklist.case_session import CaseWork
from medsam_app.worklist.rows import State
from medsam_app.worklist.store import Worklist

router = APIRouter()


class Folder(BaseModel):
    """Folder within the served folders."""

    model_config = ConfigDict(extra="forbid")
    root: int
    path: str = Field(max_length=4096)


class CaseChoice(Folder):
    """Case of a worklist, and the part of its file to open."""

    name: str = Field(max_length=4096)
    series: str | None = None
    frame: int | None = None
    channel: int | None = None


class StateChange(Folder):
    """New state of a case.

    Attributes:
        name: name of the case.
        state: new state.
        version: version of the case that the page shows.
        empty: whether a case without objects may be accepted.
    """

    name: str = Field(max_length=4096)
    state: State
    version: int
    empty: bool = False


class TeachingCommand(Folder):
    """Command for the teaching run of a worklist."""

    what: Literal["start", "cancel", "resume", "use", "drop"]
    minutes: float = Field(default=20.0, gt=0, le=10_000)


class Resolution(BaseModel):
    """Choice of the work to keep on a case that another user has changed in the meantime."""

    model_config = ConfigDict(extra="forbid")
    keep: Literal["mine", "theirs"]


def _worklist_of(service: Service, folder: Folder, *, refresh: bool = False) -> Worklist:
    return service.worklists.get(folder.root, folder.path, refresh=refresh)


@router.post("/worklist")
def open_worklist(
    folder: Annotated[Folder, Body()],
    service: CurrentService,
    workspace: PolledWorkspace,
    stamp: str = "",
    refresh: bool = False,
) -> dict[str, Any]:
    """Return the rows of a worklist, or only its stamp if it equals the stamp that the page has."""
    worklist = _worklist_of(service, folder, refresh=refresh)
    return {"stamp": stamp} if stamp and stamp == worklist.stamp() else rows(worklist)


@router.post("/worklist/case")
def open_worklist_case(
    case: Annotated[CaseChoice, Body()],
    name: CallerName,
    service: CurrentService,
    workspace: CallerWorkspace,
) -> dict[str, Any]:
    """Open a case and return the header of its volume."""
    header = open_case(
        service,
        workspace,
        _worklist_of(service, case),
        case.name,
        root=case.root,
        who=name,
        choice={"series": case.series, "frame": case.frame, "channel": case.channel},
    )
    return {"volume": header}


@router.post("/worklist/state")
def set_state(
    change: Annotated[StateChange, Body()],
    name: CallerName,
    service: CurrentService,
    workspace: CallerWorkspace,
) -> dict[str, Any]:
    """Set the state of a case and return the rows of the worklist."""
    worklist = _worklist_of(service, change)
    if change.state == "accepted":
        _accept(service, workspace, worklist, change, name)
    else:
        worklist.set_state(change.name, change.state, who=name, seen=change.version)
    return rows(worklist)


@router.post("/worklist/resolve")
def resolve(
    resolution: Annotated[Resolution, Body()], name: CallerName, workspace: CallerWorkspace
) -> dict[str, Any]:
    """Keep the work of this page, or load the work of the other user."""
    with workspace.lock:
        opened, work = _open_case(workspace)
        work.who = name
        if resolution.keep == "mine":
            work.keep(opened.session, anyway=True)
        else:
            opened.notes += work.restore(opened.session)
    return {}


@router.post("/worklist/teaching")
def teaching(
    folder: Annotated[Folder, Body()],
    service: CurrentService,
    workspace: PolledWorkspace,
    log: bool = False,
) -> dict[str, Any]:
    """Return the state of a worklist's teaching."""
    return service.teaching_runs.status(_worklist_of(service, folder), log=log)


@router.post("/worklist/teach")
def teach(
    command: Annotated[TeachingCommand, Body()],
    name: CallerName,
    service: CurrentService,
    workspace: CallerWorkspace,
) -> dict[str, Any]:
    """Start, stop or resume teaching, or change the use of its adapter; return the state of teaching."""
    worklist = _worklist_of(service, command)
    service.teaching_runs.do(worklist, command.what, minutes=command.minutes, who=name)
    return service.teaching_runs.status(worklist, log=False)


def _open_case(workspace: Workspace) -> tuple[OpenVolume, CaseWork]:
    """Return the open volume and the work on its case.

    Raises:
        WorklistError: no case of a worklist is open.
    """
    opened = workspace.opened
    if opened is None or opened.case is None:
        raise WorklistError("No case of a worklist is open; open one from the list.")
    return opened, opened.case


def _accept(
    service: Service, workspace: Workspace, worklist: Worklist, change: StateChange, name: str
) -> None:
    opened, work = _open_case(workspace)
    session = opened.session
    if work.worklist is not worklist or work.name != change.name:
        raise WorklistError(f"'{change.name}' is not the case that is open; open it before accepting it.")
    if not change.empty and not any(item.has_start for item in session.objects):
        raise SettingsError(
            "There is nothing in this case yet; click, or say that it is to be accepted empty."
        )
    work.who = name
    workspace.show("Writing the mask")
    try:
        # Do not hold the lock here: jobs of the model may wait for it.
        service.work(workspace, lambda: opened.masks(workspace.show)).result()
        with workspace.lock:
            if workspace.opened not in (None, opened):
                raise WorklistError(
                    f"Another case was opened before '{change.name}' was accepted; open it again."
                )
            work.accept(session)
    finally:
        workspace.show("")
