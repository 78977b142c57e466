"""Files of one workspace: a temporary folder, and the uploads in it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from fastapi import HTTPException

from medsam_app.errors import VolumeError

ENDED = "This session has ended; reload the page to begin a new one."


class WorkspaceFiles:
    """Temporary folder, created on first use, with uploads by key.

    Attributes:
        uploads: path and original name of each upload.
        held: key of the upload that the open volume still needs.
        closed: the workspace has ended, and its folder is gone.
    """

    def __init__(self) -> None:
        self.uploads: dict[str, tuple[Path, str]] = {}
        self.held: str | None = None
        self.closed = False
        self._folder: Path | None = None
        self._reading: list[str] = []
        self._lock = RLock()  # of all attributes; held briefly, unlike that of the workspace

    @property
    def folder(self) -> Path:
        """The folder.

        Raises:
            HTTPException: the workspace has ended.
        """
        with self._lock:
            if self.closed:
                raise HTTPException(401, ENDED)
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="medsam-"))
            return self._folder

    def new_folder(self) -> Path:
        """Make a folder for one upload.

        Raises:
            HTTPException: the workspace has ended.
        """
        with self._lock:
            return Path(tempfile.mkdtemp(dir=self.folder))

    def add(self, path: Path, name: str) -> str:
        """Register an upload that lies in a folder of `new_folder`; return the key it is opened by.

        Raises:
            HTTPException: the workspace has ended.
        """
        with self._lock:
            assert path.is_relative_to(self.folder)
            key = secrets.token_urlsafe(8)
            self.uploads[key] = (path, name)
            return key

    @contextmanager
    def reading(self, key: str) -> Iterator[tuple[Path, str]]:
        """Give path and name of an upload, which is not deleted while the context lasts.

        Raises:
            VolumeError: the upload is not there any more.
        """
        with self._lock:
            if key not in self.uploads:
                raise VolumeError("That upload is not on the server any more; choose the file again.")
            self._reading.append(key)
            upload = self.uploads[key]
        try:
            yield upload
        finally:
            with self._lock:
                self._reading.remove(key)

    def drop(self, *keys: str) -> None:
        """Delete all uploads, or those of some keys, except the one held and those being read."""
        with self._lock:
            kept = {*self._reading, self.held}
            dropped = [key for key in keys or self.uploads if key in self.uploads and key not in kept]
            paths = [self.uploads.pop(key)[0] for key in dropped]
        for path in paths:
            shutil.rmtree(path.parent, ignore_errors=True)  # each has a folder of its own

    def hold(self, key: str | None) -> None:
        """Hold an upload in place of the one held before, which is deleted; None holds no upload."""
        with self._lock:
            before, self.held = self.held, key
        if before not in (None, key):
            self.drop(before)

    def discard(self, folder: Path) -> None:
        """Delete a folder of `new_folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.closed:
            self.close()  # again: a file written meanwhile may have kept the folder from being deleted

    def close(self) -> None:
        """Delete all files."""
        with self._lock:
            self.closed = True
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
