"""Open a case of a worklist in a workspace."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from medsam_app.browser.protocol.request_bodies import Source
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import MaskPrompt
from medsam_app.session.objects import SegmentedObject, next_colour
from medsam_app.session.session import Session
from medsam_app.worklist.case_session import CaseWork, chosen_part
from medsam_app.worklist.store import Worklist


def open_case(
    service: Service,
    workspace: Workspace,
    worklist: Worklist,
    name: str,
    *,
    root: int,
    who: str,
    choice: dict[str, Any],
) -> dict[str, Any]:
    """Open a case in a workspace with the work on it; return the page's description of its volume.

    Args:
        root: in which the worklist's folder is.
        who: works on it.
        choice: series, frame and channel, as `load_volume` takes them; None for what was chosen before.

    Raises:
        WorklistError: no such case.
        VolumeError: it cannot be read, or (SeriesChoice) a part of it must be chosen.
    """
    workspace.show("Reading the volume")
    try:
        case = worklist.case(name)
        inner = worklist.folder.relative_to(service.roots[root].resolve()) / PurePosixPath(case.path)
        source = Source(source="folder", root=root, path=str(inner), series=case.series)
        chosen = chosen_part(worklist.work(name))
        chosen |= {key: value for key, value in choice.items() if value is not None}
        with service.readers:
            volume, source = service.read_part(workspace, source, chosen)
        service.evict_for(workspace, volume)
        volume.fingerprint  # noqa: B018  kept with it, so that the first click need not wait
        workspace.show("Loading the model")
        try:
            model, notes = service.model_for(worklist), []
        except MedsamError as error:
            model = service.model
            notes = [f"The adapter of this worklist cannot be used, so masks are made without it. {error}"]
        session = Session(volume, VolumePredictor(model, cache=service.cache), refine=False)
        header = service.header(workspace, volume, name, source)
        work = CaseWork(worklist, case, who=who)
        notes += work.restore(session)
        if worklist.work(name) is None:
            try:
                _propose(service, workspace, work, session)
            except MedsamError as error:
                notes.append(f"The case begins empty. {error}")
        with workspace.lock:
            session.labels = service.labels_of(workspace)
            title = name.rsplit("/", 1)[-1]
            return workspace.take(session, title, header, case=work, notes=notes).header
    finally:
        workspace.show("")


def _propose(service: Service, workspace: Workspace, work: CaseWork, session: Session) -> None:
    """Start a new case with the objects found by an adapter that has learned labels."""
    assert session.predictor is not None
    if not session.predictor.learned:
        return
    workspace.show("Waiting for the model")
    predictor = session.predictor
    labels = service.work(workspace, lambda: predictor.predict_labels(progress=workspace.show)).result()
    objects: list[SegmentedObject] = []
    for value, label_name in labels.names.items():
        mask = labels.array == value
        if mask.any():
            taken = label_name in {item.name for item in objects}
            objects.append(
                SegmentedObject(
                    id=f"o{len(objects) + 1}",
                    name=f"{label_name} {value}" if taken else label_name,
                    label=value,
                    colour=next_colour([item.colour for item in objects]),
                    prompts=(MaskPrompt.from_array(mask),),
                    times=(datetime.now(UTC).isoformat().replace("+00:00", "Z"),),
                )
            )
    session.settings = replace(session.settings, by_label=True)
    work.propose(session, objects)
