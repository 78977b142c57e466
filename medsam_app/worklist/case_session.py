"""Work on one case of a worklist: saving after every change, reopening, accepting.

The session of a case is saved in the worklist as a prompt file. Its masks are predicted again when the case
is opened; only the masks of accepted cases are saved as files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.errors import MedsamError, SaveError, WorklistConflict, WorklistError
from medsam_app.io.writing import save_mask
from medsam_app.session.objects import SegmentedObject
from medsam_app.session.prompt_file import SUFFIX, prompt_text, save_prompt_file
from medsam_app.session.settings import SessionSettings
from medsam_app.worklist.rows import Work, WorklistCase
from medsam_app.worklist.store import Worklist

if TYPE_CHECKING:
    from medsam_app.session.session import Session

MASK_SUFFIX = "_mask.nii.gz"
#: Part of a session that is saved.
_Contents = tuple[tuple[SegmentedObject, ...], SessionSettings]
#: Start of the event that records the writing of a mask.
_WRITTEN = "mask of version"


@dataclass(frozen=True)
class Problem:
    """Reason why work is not saved.

    Attributes:
        sentence: message for the user.
        conflict: whether another user changed the case.
    """

    sentence: str
    conflict: bool


class CaseWork:
    """Case of a worklist that is open in a session.

    Args:
        worklist: worklist of the case.
        case: the case at the start of the session.
        who: the user.

    Attributes:
        version: version of the case that the session is based on.
        problem: reason why the newest change is not saved; None if it is saved.
    """

    def __init__(self, worklist: Worklist, case: WorklistCase, *, who: str = "") -> None:
        self.worklist = worklist
        self.name = case.name
        self.version = case.version
        self.who = who
        self.problem: Problem | None = None
        self._saved: _Contents | None = None

    def restore(self, session: Session) -> list[str]:
        """Load the newest work on the case into a session, as the start of its history.

        Args:
            session: session of the case's volume.

        Returns:
            Sentences for the user: why the masks may differ, or why the work cannot be used.
        """
        self.version, self.problem = self.worklist.case(self.name).version, None
        work, notes = self.worklist.work(self.name), []
        if work is not None:
            try:
                replay = session.parse_prompts(
                    work.prompts, title=f"of '{self.name}'", name="The work on this case"
                )
                session.begin_with(replay.objects)
                session.settings = replay.settings
                notes = list(replay.notes)
            except MedsamError as error:
                notes = [f"The work on this case is kept but cannot be opened. {error}"]
        else:
            session.begin_with(())
        self._saved = _contents(session)
        return notes

    def propose(self, session: Session, objects: Sequence[SegmentedObject]) -> None:
        """Start a session with objects found by a model.

        They are saved with the first change, or when the case is accepted.
        """
        session.begin_with(objects)
        self._saved = _contents(session)

    def keep(self, session: Session, *, anyway: bool = False) -> None:
        """Save the contents of a session if they changed; on failure, set `problem`.

        Args:
            session: session of the case.
            anyway: save even if another user changed the case, as the next version.
        """
        contents = _contents(session)
        if contents == self._saved and self.problem is None and not anyway:
            return
        try:
            seen = self.worklist.case(self.name).version if anyway else self.version
            self.version = self.worklist.save_work(
                self.name,
                prompt_text(session, self.worklist.path.parent),
                seen=seen,
                who=self.who,
                made_by=made_by(session),
            )
        except WorklistError as error:
            self.problem = Problem(str(error), isinstance(error, WorklistConflict))
        else:
            self._saved, self.problem = contents, None

    def accept(self, session: Session) -> WorklistCase:
        """Write the mask and prompt file of the case, then set its state to 'accepted'.

        Raises:
            WorklistError: the session could not be saved, another user changed the case (WorklistConflict),
                or the name of the case leads out of the folder of masks.
            SaveError: the files could not be written; the case is unchanged.
        """
        if self.worklist.work(self.name) is None:  # the objects are the proposal of the model
            self._saved = None
        self.keep(session)
        if self.problem is None:  # without a change, too, the session may show an outdated version
            try:
                self.worklist.check(self.name, seen=self.version)
            except WorklistConflict as error:
                self.problem = Problem(str(error), conflict=True)
        if self.problem is not None:
            version = self.worklist.case(self.name).version
            raise (
                WorklistConflict(self.problem.sentence, version=version)
                if self.problem.conflict
                else WorklistError(self.problem.sentence)
            )
        mask, prompts = accepted_files(self.worklist, self.name)
        self._check_overwrite(mask)
        try:
            mask.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveError(
                f"The folder '{mask.parent}' could not be made ({error.strerror}); accept again after that."
            ) from None
        save_mask(session.label_map(), session.volume, mask, label_names=session.label_names)
        save_prompt_file(session, prompts)
        self.worklist.record_event(
            self.name, f"{_WRITTEN} {self.version} written, made by {made_by(session)}", who=self.who
        )
        return self.worklist.set_state(self.name, "accepted", who=self.who, seen=self.version)

    def _check_overwrite(self, mask: Path) -> None:
        """Refuse to overwrite a mask that the worklist did not write."""
        written_here = any(event.what.startswith(_WRITTEN) for event in self.worklist.events(self.name))
        if mask.exists() and not written_here:
            raise SaveError(
                f"'{mask.parent.name}/{mask.name}' is there already and was not written by this worklist; "
                "move it away, or start the server with --worklist and a folder for masks, and accept again."
            )


def accepted_files(worklist: Worklist, name: str) -> tuple[Path, Path]:
    """Return the paths of the mask and the prompt file of an accepted case.

    Raises:
        WorklistError: the name of the case leads out of the folder of masks.
    """
    files = worklist.masks / f"{name}{MASK_SUFFIX}", worklist.masks / f"{name}{SUFFIX}"
    inside = worklist.masks.resolve()
    if not all(file.resolve().is_relative_to(inside) for file in files):
        raise WorklistError(f"The case '{name}' has a name that no file can have; it cannot be accepted.")
    return files


def made_by(session: Session) -> str:
    """Return the model and adapter of a session with their hashes, as JSON."""
    model = session.identity
    if model is None:
        return "{}"
    record = {"model": model.model_id, "model_sha256": model.weights_sha256}
    if model.adapter_sha256:
        record |= {"adapter": model.adapter_id, "adapter_sha256": model.adapter_sha256}
    return json.dumps(record)


def chosen_part(work: Work | None) -> dict[str, Any]:
    """Return the series, frame and channel of the image of some work, as arguments of `load_volume`."""
    if work is None:
        return {}
    try:
        image = json.loads(work.prompts)["image"]
        return {key: image[key] for key in ("series", "frame", "channel") if image.get(key) is not None}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _contents(session: Session) -> _Contents:
    return (session.objects, session.settings)
