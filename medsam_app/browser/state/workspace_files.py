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
    """Temporary folder with uploads by key, created on first use.

    Attributes:
        uploads: path and original name of each upload.
        held: key of the upload that the open volume still needs, or None.
        closed: whether the workspace has ended and its folder is deleted.
    """

    def __init__(self) -> None:
        self.uploads: dict[str, tuple[Path, str]] = {}
        self.held: str | None = None
        self.closed = False
        self._folder: Path | None = None
        self._reading: list[str] = []
        self._lock = RLock()  # protects all attributes; held briefly, unlike the lock of the workspace

    @property
    def folder(self) -> Path:
        """Temporary folder of the workspace.

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
        """Create a folder for one upload and return its path.

        Raises:
            HTTPException: the workspace has ended.
        """
        with self._lock:
            return Path(tempfile.mkdtemp(dir=self.folder))

    def add(self, path: Path, name: str) -> str:
        """Register an upload stored in a folder from `new_folder`; return its key.

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
        """Yield the path and name of an upload, which is not deleted within the context.

        Raises:
            VolumeError: the upload no longer exists.
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
        """Delete the uploads with these keys, or all; keep the held one and those being read."""
        with self._lock:
            in_use = {*self._reading, self.held}
            dropped = [key for key in keys or self.uploads if key in self.uploads and key not in in_use]
            paths = [self.uploads.pop(key)[0] for key in dropped]
        for path in paths:
            shutil.rmtree(path.parent, ignore_errors=True)  # each upload has a separate folder

    def hold(self, key: str | None) -> None:
        """Hold an upload and delete the previously held one; None holds no upload."""
        with self._lock:
            previous, self.held = self.held, key
        if previous not in (None, key):
            self.drop(previous)

    def discard(self, folder: Path) -> None:
        """Delete a folder from `new_folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.closed:
            self.close()  # again: a file written in the meantime may have prevented the deletion

    def close(self) -> None:
        """Delete all files; the workspace has ended."""
        with self._lock:
            self.closed = True
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
