"""Workspaces: what the server keeps for each page, behind a token nobody can guess."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from medsam_app.browser.state.comparison import Reference
from medsam_app.errors import PromptError, VolumeError
from medsam_app.measure.measurements import Measurement
from medsam_app.measure.surface_mesh import Surface
from medsam_app.predict.core.prediction import MaskPrediction
from medsam_app.session.label_set import Label
from medsam_app.session.session import Session
from medsam_app.worklist.case_session import CaseWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam_app.io.volume import Volume

ANOTHER = (
    "Another volume has been opened in this session, so this was not done; reload the page where it does not "
    "show that one."
)
ENDED = "This session has ended; reload the page to begin a new one."


class Workspace:
    """One page's session, uploads and progress. `lock` is held while its session is changed."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(32)
        self.lock = RLock()
        self.session: Session | None = None
        self.case: CaseWork | None = None  # of a worklist
        self.notes: list[str] = []  # that the page is told with the next state
        self.name = ""
        self.header: dict[str, Any] | None = None
        self.uploads: dict[str, tuple[Path, str]] = {}
        self.held: str | None = None
        #: Series, frames and channels that a source was found to have: what it is, and choices by option.
        self.parts: tuple[Hashable, dict[str, list[tuple[str, str]]]] = (None, {})
        self.progress: tuple[str, float | None] = ("", None)
        self.last_used = time.monotonic()
        self.closed = False
        self._folder: Path | None = None
        self._reading: list[str] = []
        self._files_lock = RLock()  # never held for long, unlike `lock`; for all that is said of files here
        self._keys: dict[Hashable, str] = {}
        self.labels: tuple[Label, ...] | None = None
        self._volumes = 0
        #: By key of the mask.
        self.measurements: dict[str, Measurement] = {}
        self.surfaces: dict[str, Surface] = {}
        #: What is compared with.
        self.other: Reference | None = None

    @property
    def folder(self) -> Path:
        """A folder for this workspace's files, gone with it; `HTTPException` when it is closed."""
        with self._files_lock:
            if self.closed:
                raise HTTPException(401, ENDED)
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="medsam-"))
            return self._folder

    def take(
        self,
        session: Session,
        name: str,
        header: dict[str, Any],
        *,
        case: CaseWork | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Work on another volume from now on.

        Args:
            header: what pages are told of it.
            case: of a worklist, where it is one.
            notes: sentences that the page is told.
        """
        self._volumes += 1
        self.session, self.name, self.header = session, name, header | {"opened": self._volumes}
        self.case, self.notes = case, list(notes)
        self._keys, self.measurements, self.surfaces, self.other = {}, {}, {}, None

    def check(self, opened: int | None) -> None:
        """Refuse what is meant for another volume than is open, which a page names by its number 'opened'."""
        if opened is not None and self.session is not None and opened != self._volumes:
            raise HTTPException(409, ANOTHER)

    def open_session(self) -> Session:
        """Return the session on the open volume.

        Raises:
            PromptError: no volume is open.
        """
        if self.session is None:
            raise PromptError("No volume is open; open one first.")
        return self.session

    def show(self, text: str, fraction: float | None = None) -> None:
        """Say how far a job is."""
        self.progress = (text, fraction)

    @property
    def array(self) -> NDArray | None:
        """Voxels of the volume, None where none is open."""
        session = self.session
        return None if session is None else session.volume.array

    @property
    def nbytes(self) -> int:
        """Memory that its masks and what the predictor remembers hold, in bytes; not the volume's."""
        session = self.session
        return 0 if session is None else session.nbytes

    def forget(self) -> None:
        """Let go of what costs only time to make again."""
        session = self.session
        if session is not None and session.predictor is not None:
            session.predictor.forget()

    @property
    def volume(self) -> Volume:
        """The volume worked on."""
        assert self.session is not None
        return self.session.volume

    @property
    def restored(self) -> bool:
        """Whether there are objects whose masks may not be made yet."""
        return self.case is not None and self.session is not None and bool(self.session.objects)

    def masks(self) -> dict[str, tuple[str, MaskPrediction]]:
        """For each object that has a mask, by id: the mask's key and the mask.

        Masks that are made of the same have equal keys: the browser keeps what it has seen, and undo and redo
        send nothing.
        """
        assert self.session is not None
        found = {}
        for each in self.session.objects:
            made = self.session.prediction(each.id, progress=self.show)
            if made is not None:
                made_of = self.session.made_of(each.id)
                key = self._keys.setdefault(made_of, f"v{self._volumes}m{len(self._keys)}")
                found[each.id] = (key, made)
        return found

    def keep_work(self) -> dict[str, Any] | None:
        """Keep the work on a case of a worklist; how that stands, for the page."""
        if self.case is None:
            return None
        assert self.session is not None
        self.case.keep(self.session)
        problem = self.case.problem
        return {
            "name": self.case.name,
            "version": self.case.version,
            "problem": problem.sentence if problem else "",
            "conflict": problem is not None and problem.conflict,
        }

    def place(self) -> Path:
        """A new folder for an upload; `HTTPException` when this is closed."""
        with self._files_lock:
            return Path(tempfile.mkdtemp(dir=self.folder))

    def keep(self, path: Path, name: str) -> str:
        """Keep what was sent, in a folder of `place`; the key it is opened by."""
        with self._files_lock:
            assert path.is_relative_to(self.folder)  # which refuses when this is closed
            key = secrets.token_urlsafe(8)
            self.uploads[key] = (path, name)
            return key

    @contextmanager
    def upload(self, key: str) -> Iterator[tuple[Path, str]]:
        """Path and name of what was sent, which stays while it is read; `VolumeError` when it is gone."""
        with self._files_lock:
            if key not in self.uploads:
                raise VolumeError("That upload is not on the server any more; choose the file again.")
            self._reading.append(key)
            found = self.uploads[key]
        try:
            yield found
        finally:
            with self._files_lock:
                self._reading.remove(key)

    def drop_uploads(self, *keys: str) -> None:
        """Delete what was sent, all of it or that of some keys, but for what is being read or held."""
        with self._files_lock:
            kept = {*self._reading, self.held}
            wanted = [key for key in keys or self.uploads if key in self.uploads and key not in kept]
            paths = [self.uploads.pop(key)[0] for key in wanted]
        for path in paths:
            shutil.rmtree(path.parent, ignore_errors=True)  # each has a folder of its own

    def hold(self, key: str | None) -> None:
        """Keep an upload, which is still needed, until another one is or none; the one before goes."""
        with self._files_lock:
            before, self.held = self.held, key
        if before not in (None, key):
            self.drop_uploads(before)

    def discard(self, place: Path) -> None:
        """Delete a folder of `place`."""
        shutil.rmtree(place, ignore_errors=True)
        if self.closed:
            self.close()  # again: what was written meanwhile may have kept the folder from going

    def close(self) -> None:
        """Free everything."""
        self.session = None
        with self._files_lock:
            self.closed = True
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
