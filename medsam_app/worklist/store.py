"""Worklist of a folder: cases, their states and their work in one SQLite file.

Several users and servers may have it open. Committed changes survive a crash. The version number of a case
reveals that another writer changed it first. Paths are relative to the folder, so that the folder can be
moved.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock

from medsam_app.atomic import as_text
from medsam_app.datasets.find import label_files
from medsam_app.errors import SettingsError, WorklistConflict, WorklistError
from medsam_app.io.paths import exists, walk_folders
from medsam_app.worklist.folder import volumes_for
from medsam_app.worklist.rows import STATES, Event, State, Work, WorklistCase

DATABASE = ".medsam_app.sqlite"
MASKS = "masks"
VERSION = 1
#: Number of versions of the work on a case that are stored.
MOST_VERSIONS = 50
#: Seconds to wait while another process writes.
PATIENCE = 20.0

_SCHEMA = """
CREATE TABLE cases (
    name TEXT PRIMARY KEY, path TEXT NOT NULL, series TEXT, problem TEXT NOT NULL DEFAULT '',
    missing INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'new', version INTEGER NOT NULL DEFAULT 0,
    who TEXT NOT NULL DEFAULT '', changed TEXT NOT NULL DEFAULT ''
);
CREATE TABLE work (
    name TEXT NOT NULL REFERENCES cases (name), version INTEGER NOT NULL, prompts TEXT NOT NULL,
    made_by TEXT NOT NULL, who TEXT NOT NULL, changed TEXT NOT NULL, PRIMARY KEY (name, version)
);
CREATE TABLE events (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL,
    changed TEXT NOT NULL
);
CREATE INDEX events_of_case ON events (name);
"""


class Worklist:
    """Cases of a folder. Safe to use from several threads and processes.

    Args:
        folder: folder of the volumes.
        place: folder of the database; by default `folder`.

    Attributes:
        left_out: number of label files that the last `refresh` left out.
        unread: number of volumes that it left out; see `volumes_for`.

    Raises:
        VolumeError: the folder does not exist.
        WorklistError: the database cannot be opened, or has the version of a newer program.
    """

    def __init__(self, folder: Path, *, place: Path | None = None) -> None:
        self.folder = folder
        self.path = (place or folder) / DATABASE
        self.left_out = self.unread = 0
        self._lock = RLock()
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")  # no effect where WAL is not possible
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._prepare()
        except sqlite3.Error as error:
            raise WorklistError(
                f"The worklist '{self.path}' cannot be opened ({error}); give a folder that you may write to."
            ) from None

    def _prepare(self) -> None:
        with self._writing() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise WorklistError(
                    f"The worklist '{self.path}' has version {version}, but this program knows version "
                    f"{VERSION}; use the program that wrote it."
                )

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction, which is rolled back on any error.

        Raises:
            WorklistError: the database could not be written.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise WorklistError(
                    f"The worklist '{self.path}' could not be written ({error}); make sure that the folder "
                    "may be written to and has room, and try again."
                ) from None

    # Queries

    def cases(self, *, state: State | None = None, search: str = "") -> list[WorklistCase]:
        """Return the cases in the order of their names.

        Args:
            state: state of the cases; all states by default.
            search: text in the names of the cases, in any case.
        """
        where, values = ["instr(lower(name), lower(?)) > 0"], [search]
        if state is not None:
            where.append("state = ?")
            values.append(_checked(state))
        rows = self._rows(f"SELECT * FROM cases WHERE {' AND '.join(where)} ORDER BY name", *values)
        return [_case(row) for row in rows]

    def case(self, name: str) -> WorklistCase:
        """Return the case with a name.

        Raises:
            WorklistError: there is no such case.
        """
        rows = self._rows("SELECT * FROM cases WHERE name = ?", name)
        if not rows:
            raise WorklistError(
                f"There is no case '{name}' in the worklist of '{self.folder.name}'; choose another."
            )
        return _case(rows[0])

    def counts(self) -> dict[State, int]:
        """Return the number of cases in each state."""
        counts = dict(map(tuple, self._rows("SELECT state, COUNT(*) FROM cases GROUP BY state")))
        return {state: counts.get(state, 0) for state in STATES}

    def work(self, name: str) -> Work | None:
        """Return the newest work on a case, or None."""
        return next(iter(self.works(name)), None)

    def works(self, name: str) -> list[Work]:
        """Return all stored work on a case, newest first."""
        rows = self._rows("SELECT * FROM work WHERE name = ? ORDER BY version DESC", name)
        return [Work(**{key: row[key] for key in row.keys() if key != "name"}) for row in rows]  # noqa: SIM118

    def stamp(self) -> str:
        """Return a text that changes with every change of the worklist."""
        (row,) = self._rows(
            "SELECT COUNT(*), SUM(version), SUM(missing), (SELECT MAX(number) FROM events) FROM cases"
        )
        return "-".join(str(part or 0) for part in row)

    def events(self, name: str) -> list[Event]:
        """Return the events of a case, newest first."""
        rows = self._rows(
            "SELECT name, what, who, changed FROM events WHERE name = ? ORDER BY number DESC", name
        )
        return [Event(**dict(row)) for row in rows]

    def _rows(self, query: str, *values: str) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    # Changes

    def refresh(self) -> int:
        """Scan the folder and return the number of cases.

        New volumes become cases. Cases without a volume are marked as missing. Label maps next to their
        images are not cases, unless there is work on them. Work is never deleted.

        Raises:
            VolumeError: there is no volume in the folder, or none that can be a case.
        """
        # Masks of this worklist and of worklists in subfolders.
        masks = [self.masks]
        masks += [place / MASKS for place in walk_folders(self.folder) if exists(place / DATABASE)]
        mask_folders = [path.resolve() for path in masks]
        labels_with_work = {_real(self.folder / case.path) for case in self.cases() if case.changed}
        labels = {
            path
            for path in label_files(self.folder) - labels_with_work
            if not any(path.is_relative_to(folder) for folder in mask_folders)
        }
        volumes, unusable = volumes_for(self.folder, leave_out=[*masks, *labels])
        self.left_out, self.unread = len(labels), len(unusable)
        unusable_paths = {volume.path for volume in unusable}
        case_paths = [(case, self.folder / case.path) for case in self.cases()]
        label_cases = [(case.path,) for case, path in case_paths if _real(path) in labels]
        # Cases in a folder that cannot be read are not marked as missing, because they may still exist.
        missing = [
            (case.name,) for case, path in case_paths if unusable_paths.isdisjoint((path, *path.parents))
        ]
        rows = [
            (
                volume.case,
                volume.path.relative_to(self.folder).as_posix(),
                volume.series,
                as_text(volume.problem),
            )
            for volume in volumes
        ]
        with self._writing() as connection:  # short: other writers wait for this
            connection.executemany("DELETE FROM cases WHERE path = ? AND changed = ''", label_cases)
            connection.executemany("UPDATE cases SET missing = 1 WHERE name = ?", missing)
            connection.executemany(
                "INSERT INTO cases (name, path, series, problem) VALUES (?, ?, ?, ?) ON CONFLICT (name) "
                "DO UPDATE SET path = excluded.path, series = excluded.series, "
                "problem = excluded.problem, missing = 0",
                rows,
            )
        return len(volumes)

    @property
    def masks(self) -> Path:
        """Folder of the masks of accepted cases, next to the database."""
        return self.path.parent / MASKS

    def save_work(self, name: str, prompts: str, *, seen: int, who: str = "", made_by: str = "") -> int:
        """Save work on a case and set its state to 'in progress', unless it is 'to review'.

        Args:
            name: name of the case.
            prompts: prompt file, as text.
            seen: version of the case that the work is based on.
            who: the user.
            made_by: see `Work`.

        Returns:
            The new version.

        Raises:
            WorklistConflict: the case has another version, because another user changed it. Nothing was
                written.
            WorklistError: there is no such case, or the database could not be written.
        """
        with self._writing() as connection:
            case = self.case(name)
            if case.version != seen:
                raise _conflict(case)
            now, version = _now(), seen + 1
            state: State = case.state if case.state == "to review" else "in progress"
            connection.execute(
                "INSERT INTO work (name, version, prompts, made_by, who, changed) VALUES (?, ?, ?, ?, ?, ?)",
                (name, version, prompts, made_by, who, now),
            )
            connection.execute(
                "DELETE FROM work WHERE name = ? AND version <= ?", (name, version - MOST_VERSIONS)
            )
            connection.execute(
                "UPDATE cases SET version = ?, state = ?, who = ?, changed = ? WHERE name = ?",
                (version, state, who, now, name),
            )
            if state != case.state:
                self._record_event(connection, name, state, who, now)
            return version

    def set_state(self, name: str, state: State, *, who: str = "", seen: int | None = None) -> WorklistCase:
        """Set the state of a case.

        Args:
            name: name of the case.
            state: new state.
            who: the user.
            seen: expected version of the case; None for any version.

        Raises:
            WorklistConflict: the case has another version.
            WorklistError: there is no such case, or the database could not be written.
            SettingsError: the state is unknown.
        """
        with self._writing() as connection:
            case = self.case(name)
            if seen is not None and case.version != seen:
                raise _conflict(case)
            if case.state != _checked(state):
                now = _now()
                connection.execute(
                    "UPDATE cases SET state = ?, who = ?, changed = ? WHERE name = ?", (state, who, now, name)
                )
                self._record_event(connection, name, state, who, now)
            return self.case(name)

    def check(self, name: str, *, seen: int) -> None:
        """Check that a case has an expected version.

        Raises:
            WorklistConflict: the case has another version, because another user changed it.
            WorklistError: there is no such case.
        """
        case = self.case(name)
        if case.version != seen:
            raise _conflict(case)

    def record_event(self, name: str, what: str, *, who: str = "") -> None:
        """Record an event of a case."""
        with self._writing() as connection:
            self._record_event(connection, name, what, who, _now())

    @staticmethod
    def _record_event(connection: sqlite3.Connection, name: str, what: str, who: str, now: str) -> None:
        values = (name, what, who, now)
        connection.execute("INSERT INTO events (name, what, who, changed) VALUES (?, ?, ?, ?)", values)


def _conflict(case: WorklistCase) -> WorklistConflict:
    who, when = case.who or "somebody else", case.changed[:16].replace("T", " ")
    return WorklistConflict(
        f"The case '{case.name}' was changed by {who} at {when} UTC, after you opened it; take that work, or "
        "keep yours as a newer version.",
        version=case.version,
    )


def _case(row: sqlite3.Row) -> WorklistCase:
    return WorklistCase(**(dict(row) | {"missing": bool(row["missing"])}))


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # a link to itself, before Python 3.13
        return path


def _checked(state: str) -> str:
    if state not in STATES:
        raise SettingsError(f"The state of a case is one of {', '.join(STATES)}; got '{state}'.")
    return state


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
