"""Opening of a worklist's case in a workspace."""

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
    """Open a case in a workspace with the stored work on it; return the header of its volume for the page.

    Args:
        service: service of the server.
        workspace: workspace that opens the case.
        worklist: worklist with the case.
        name: name of the case.
        root: index of the root that contains the worklist's folder.
        who: name of the user.
        choice: series, frame and channel, as for `load_volume`; None for the previous choice.

    Raises:
        WorklistError: the case does not exist.
        VolumeError: the case cannot be read, or (SeriesChoice) a part of it must be chosen.
    """
    workspace.show("Reading the volume")
    try:
        case = worklist.case(name)
        path = worklist.folder.relative_to(service.roots[root].resolve()) / PurePosixPath(case.path)
        source = Source(source="folder", root=root, path=str(path), series=case.series)
        chosen = chosen_part(worklist.work(name))
        chosen |= {key: value for key, value in choice.items() if value is not None}
        with service.readers:
            volume, source = service.read_part(workspace, source, chosen)
        service.evict_for(workspace, volume)
        volume.fingerprint  # noqa: B018  computed and cached now, not at the first click
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
            return workspace.replace_volume(session, title, header, case=work, notes=notes).header
    finally:
        workspace.show("")


def _propose(service: Service, workspace: Workspace, work: CaseWork, session: Session) -> None:
    """Start a new case with objects predicted by an adapter that has learned labels, if there is one."""
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
            name_in_use = label_name in {item.name for item in objects}
            objects.append(
                SegmentedObject(
                    id=f"o{len(objects) + 1}",
                    name=f"{label_name} {value}" if name_in_use else label_name,
                    label=value,
                    colour=next_colour([item.colour for item in objects]),
                    prompts=(MaskPrompt.from_array(mask),),
                    times=(datetime.now(UTC).isoformat().replace("+00:00", "Z"),),
                )
            )
    session.settings = replace(session.settings, by_label=True)
    work.propose(session, objects)
