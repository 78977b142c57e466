"""Worklists that are open on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from medsam_app.browser.protocol import allowed_files
from medsam_app.errors import VolumeError, WorklistError
from medsam_app.worklist.folder import volumes_for
from medsam_app.worklist.store import DATABASE, Worklist


class Worklists:
    """Worklists by folder, each opened once.

    Scanning a folder may take minutes. Meanwhile, requests for other folders, and for this folder if it is
    already open, are answered.

    Args:
        roots: folders that may be opened, as in `allowed_files.resolve`.
        place: folder for databases and masks, with subfolders named like those of the data; None to keep them
            with the data.
    """

    def __init__(self, roots: Sequence[Path], place: Path | None = None) -> None:
        self.roots, self.place = roots, place
        self._lock = Lock()  # protects the dictionaries; never held during a scan
        self._open: dict[Path, Worklist] = {}
        self._opening: dict[Path, Lock] = {}

    def get(self, root: int, path: str, *, refresh: bool = False) -> Worklist:
        """Return the worklist of a folder, and open it if necessary.

        Args:
            root: index of the root, as in `allowed_files.resolve`.
            path: path relative to the root.
            refresh: whether to scan the folder for new cases.

        Raises:
            VolumeError: the folder may not be opened, or contains no volume.
            WorklistError: the database of the worklist cannot be opened.
        """
        folder = allowed_files.resolve(self.roots, root, path)
        if not folder.is_dir():
            raise VolumeError("That is a file, not a folder; choose a folder from the list.")
        with self._lock:
            worklist, opening = self._open.get(folder), self._opening.setdefault(folder, Lock())
        if worklist is not None and not refresh:
            return worklist
        with opening:
            with self._lock:
                worklist = self._open.get(folder)  # another thread may have opened it meanwhile
            if worklist is not None:
                if refresh:
                    worklist.refresh()
                return worklist
            worklist = self._open_worklist(folder, self._place(root, folder))
            with self._lock:
                self._open[folder] = worklist
            return worklist

    @staticmethod
    def _open_worklist(folder: Path, place: Path | None) -> Worklist:
        if not ((place or folder) / DATABASE).exists():
            volumes_for(folder)  # raises for a folder without volumes, before a database is created there
        worklist = Worklist(folder, place=place)
        try:
            worklist.refresh()
        except BaseException:
            worklist.close()
            raise
        return worklist

    def _place(self, root: int, folder: Path) -> Path | None:
        """Create and return the folder for a worklist's database; None for the folder of the data."""
        if self.place is None:
            return None
        base = self.roots[root].resolve()
        names = [root_folder.resolve().name for root_folder in self.roots]
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
    """Return the rows and counts of a worklist for the page."""
    return {
        "stamp": worklist.stamp(),
        "folder": worklist.folder.name,
        "left_out": worklist.left_out,
        "unread": worklist.unread,
        "counts": worklist.counts(),
        "cases": [asdict(case) for case in worklist.cases()],
    }
