"""Worklists that are open on this server, and how a page gets a case of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any

from medsam_app.browser.protocol import allowed_files
from medsam_app.browser.protocol.request_bodies import Source
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError, VolumeError, WorklistError
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import MaskPrompt
from medsam_app.session.objects import SegmentedObject, next_colour
from medsam_app.session.session import Session
from medsam_app.worklist.case_session import CaseWork, chosen_part
from medsam_app.worklist.folder import volumes_for
from medsam_app.worklist.store import DATABASE, Worklist

if TYPE_CHECKING:
    from medsam_app.browser.state.service import Service


class Worklists:
    """Worklists by folder, opened once. While one is looked through, which may take minutes, those of other
    folders are answered, and so is it where it is open already.

    Args:
        roots: folders that may be opened, as of `files.resolve`.
        place: folder that databases and masks go to, in folders named as those of the data; None to keep
            them with the data.
    """

    def __init__(self, roots: Sequence[Path], place: Path | None = None) -> None:
        self.roots, self.place = roots, place
        self._lock = Lock()  # of the dictionaries, held for no longer
        self._open: dict[Path, Worklist] = {}
        self._opening: dict[Path, Lock] = {}

    def get(self, root: int, path: str, *, refresh: bool = False) -> Worklist:
        """The worklist of a folder.

        Args:
            root, path: as of `files.resolve`.
            refresh: look through the folder for new cases.

        Raises:
            VolumeError: the folder is not one that may be opened, or holds no volume.
            WorklistError: its database cannot be opened.
        """
        folder = allowed_files.resolve(self.roots, root, path)
        if not folder.is_dir():
            raise VolumeError("That is a file, not a folder; choose a folder from the list.")
        with self._lock:
            opened, opening = self._open.get(folder), self._opening.setdefault(folder, Lock())
        if opened is not None and not refresh:
            return opened
        with opening:
            with self._lock:
                opened = self._open.get(folder)  # by whoever was here before
            if opened is not None:
                if refresh:
                    opened.refresh()
                return opened
            opened = self._opened(folder, self._place(root, folder))
            with self._lock:
                self._open[folder] = opened
            return opened

    @staticmethod
    def _opened(folder: Path, place: Path | None) -> Worklist:
        if not ((place or folder) / DATABASE).exists():
            volumes_for(folder)  # before a file is made there
        worklist = Worklist(folder, place=place)
        try:
            worklist.refresh()
        except BaseException:
            worklist.close()
            raise
        return worklist

    def _place(self, root: int, folder: Path) -> Path | None:
        if self.place is None:
            return None
        base = self.roots[root].resolve()
        names = [each.resolve().name for each in self.roots]
        name = base.name if names.count(base.name) == 1 else f"{base.name}_{root + 1}"
        place = self.place / (name or "root") / folder.relative_to(base)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorklistError(
                f"The folder '{place}' for the worklist could not be made ({error.strerror}); start the "
                "server with another --worklist."
            ) from None
        return place

    def close(self) -> None:
        """Close the databases."""
        with self._lock:
            for worklist in self._open.values():
                worklist.close()
            self._open.clear()


def rows(worklist: Worklist) -> dict[str, Any]:
    """What a page is told of a worklist."""
    return {
        "stamp": worklist.stamp(),
        "folder": worklist.folder.name,
        "left_out": worklist.left_out,
        "unread": worklist.unread,
        "counts": worklist.counts(),
        "cases": [asdict(case) for case in worklist.cases()],
    }


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
    """Open a case in a workspace with the work on it; what is told of its volume.

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
        service.make_room(workspace, volume)
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
        notes += work.restore(session, workspace.folder)
        if worklist.work(name) is None:
            try:
                _propose(service, workspace, work, session)
            except MedsamError as error:
                notes.append(f"The case begins empty. {error}")
        with workspace.lock:
            session.labels = service.labels_of(workspace)
            workspace.take(session, name.rsplit("/", 1)[-1], header, case=work, notes=notes)
            return workspace.header or header
    finally:
        workspace.show("")


def _propose(service: Service, workspace: Workspace, work: CaseWork, session: Session) -> None:
    """Let a new case begin with what an adapter finds that has learned labels."""
    assert session.predictor is not None
    if not session.predictor.learned:
        return
    workspace.show("Waiting for the model")
    predictor = session.predictor
    found = service.work(workspace, lambda: predictor.predict_labels(progress=workspace.show)).result()
    objects: list[SegmentedObject] = []
    for value, label in found.names.items():
        mask = found.array == value
        if mask.any():
            objects.append(
                SegmentedObject(
                    id=f"o{len(objects) + 1}",
                    name=label if label not in {each.name for each in objects} else f"{label} {value}",
                    label=value,
                    colour=next_colour([each.colour for each in objects]),
                    prompts=(MaskPrompt.from_array(mask),),
                    times=(datetime.now(UTC).isoformat().replace("+00:00", "Z"),),
                )
            )
    session.by_label = True
    work.propose(session, objects)
