"""Workspace: the state of one page, identified by a token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from medsam_app.browser.state.open_volume import OpenVolume
from medsam_app.browser.state.workspace_files import WorkspaceFiles
from medsam_app.errors import PromptError
from medsam_app.session.label_set import Label
from medsam_app.session.session import Session
from medsam_app.worklist.case_session import CaseWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

OTHER_VOLUME_OPEN = (
    "Another volume has been opened in this session, so this was not done; reload the page where it does not "
    "show that one."
)


@dataclass(frozen=True)
class SourceParts:
    """Series, frames and channels to choose from in a file or folder.

    Attributes:
        location: identity of the file or folder.
        choices: values and their texts, by option.
    """

    location: Hashable = None
    choices: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


class Workspace:
    """State of one page.

    Attributes:
        token: unguessable token that identifies the page.
        lock: lock for changes to the session and for opening another volume.
        opened: open volume, or None.
        files: uploads and temporary files.
        parts: choices that the last read source offers.
        labels: label set that the page has sent; None for that of the server.
        progress: text and fraction of the current step.
        last_used: time of the last request in seconds.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self.lock = RLock()
        self.opened: OpenVolume | None = None
        self.files = WorkspaceFiles()
        self.parts = SourceParts()
        self.labels: tuple[Label, ...] | None = None
        self.progress: tuple[str, float | None] = ("", None)
        self.last_used = time.monotonic()
        self._volumes = 0

    def replace_volume(
        self,
        session: Session,
        name: str,
        header: dict[str, Any],
        *,
        case: CaseWork | None = None,
        notes: Sequence[str] = (),
    ) -> OpenVolume:
        """Set the open volume in place of the previous one.

        Args:
            session: session on the volume.
            name: name of the volume without file ending.
            header: header of the volume for the page; the number of the volume is added.
            case: work on the case if the volume is a case of a worklist.
            notes: sentences for the page.
        """
        self._volumes += 1
        header = header | {"opened": self._volumes}
        self.opened = OpenVolume(self._volumes, session, name, header, case, list(notes))
        return self.opened

    def require_open(self) -> OpenVolume:
        """Return the open volume.

        Raises:
            PromptError: no volume is open.
        """
        opened = self.opened
        if opened is None:
            raise PromptError("No volume is open; open one first.")
        return opened

    def check(self, number: int | None) -> None:
        """Refuse a request for a volume that is no longer open.

        Args:
            number: number of the volume that the page shows; None for any.

        Raises:
            HTTPException: another volume is open (409).
        """
        opened = self.opened
        if number is not None and opened is not None and number != opened.number:
            raise HTTPException(409, OTHER_VOLUME_OPEN)

    def show(self, text: str, fraction: float | None = None) -> None:
        """Set the progress that the page shows."""
        self.progress = (text, fraction)

    @property
    def array(self) -> NDArray | None:
        """Voxels of the open volume; None if no volume is open."""
        opened = self.opened
        return None if opened is None else opened.volume.array

    @property
    def nbytes(self) -> int:
        """Memory of the masks and the predictor's caches in bytes, without the volume."""
        opened = self.opened
        return 0 if opened is None else opened.session.nbytes

    def forget(self) -> None:
        """Free the predictor's caches, which can be recomputed."""
        opened = self.opened
        if opened is not None and opened.session.predictor is not None:
            opened.session.predictor.forget()

    def close(self) -> None:
        """Free the volume and delete all files."""
        self.opened = None
        self.files.close()
