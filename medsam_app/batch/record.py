"""Records of a folder's results: one per case, in a journal that survives kills.

In the output folder, `.medsam-app/` holds what runs tell each other: what decides the masks there
(`settings.json`), a journal of each run or shard, to which a line is added when a case is begun and when it
has ended, and a lock that a run holds as long as it lives.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from medsam_app.atomic import save_whole
from medsam_app.errors import SaveError, SettingsError

#: Folder of the journals within the output folder.
HIDDEN = ".medsam-app"
Outcome = Literal["done", "failed", "skipped"]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectRecord(_Kept):
    """An object that was segmented.

    Attributes:
        label, name: of the object.
        voxels, volume_ml: of its mask.
        prompts: how many were given; 0 where the adapter found it without.
        unmet: how many of them the mask does not honour.
        score: predicted Dice from 0 to 1; None without prompts.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    prompts: int = 0
    unmet: int = 0
    score: float | None = None


class OutputRecord(_Kept):
    """A file that was written: its path within the output folder, with '/', and its size."""

    path: str
    bytes: int


class CaseRecord(_Kept):
    """Result of one case.

    Attributes:
        case: its name: its path within the input folder without the ending, with '/'.
        image: file or folder. series: UID of a DICOM series.
        outcome: "done", "failed" or "skipped", where nothing was asked of it.
        message: why it failed or was skipped, in a sentence.
        warnings: what a person should know, in sentences.
        asked: what said where the objects are: "prompt file", "table", "mask" or "automatic".
        objects: one for each; of a case that failed none.
        outputs: files that were written, label maps first. thumbnail: a picture, within the output folder.
        seconds: by step ("read", "wait", "segment", "write").
        peak_memory: most bytes that its process took from when the case was in the model to its end; None
            where the system does not say.
        device: where the model ran.
        settings: hash of what decided the masks.
        key: hash of the image's and the prompts' files as they were, by size and time.
    """

    case: str
    image: str
    series: str | None = None
    outcome: Outcome
    message: str = ""
    warnings: tuple[str, ...] = ()
    asked: str = ""
    objects: tuple[ObjectRecord, ...] = ()
    outputs: tuple[OutputRecord, ...] = ()
    thumbnail: str | None = None
    seconds: dict[str, float] = {}
    peak_memory: int | None = None
    device: str = ""
    settings: str = ""
    key: str = ""

    @property
    def unmet(self) -> int:
        """Number of prompts that the masks do not satisfy."""
        return sum(each.unmet for each in self.objects)

    @property
    def empty(self) -> list[str]:
        """Names of the objects that have no voxel."""
        return [each.name for each in self.objects if not each.voxels]


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count` of a folder's cases, from 1; 1 of 1 for all."""

    number: int = 1
    count: int = 1

    @property
    def whole(self) -> bool:
        """Whether the shard is the whole folder."""
        return self.count == 1

    @property
    def suffix(self) -> str:
        """Suffix of the names of this shard's files."""
        return "" if self.whole else f"-{self.number}-of-{self.count}"


def read_shard(text: str | None) -> Shard:
    """'2/8' as a shard; None for the whole.

    Raises:
        SettingsError: it is not written so.
    """
    if text is None:
        return Shard()
    number, slash, count = text.partition("/")
    if not (slash and number.strip().isdecimal() and count.strip().isdecimal()):
        raise SettingsError(f"--shard is written NUMBER/COUNT, such as 2/8; got '{text}'.")
    shard = Shard(int(number), int(count))
    if not 1 <= shard.number <= shard.count:
        raise SettingsError(f"--shard counts from 1 to the number of shards; got '{text}'.")
    return shard


class Journal:
    """The journals of an output folder, and the one that this run adds to.

    Args:
        out: the output folder.
        shard: which part of the cases this run is about.
        settings: hash of what decides the masks; records of others count for nothing.

    Attributes:
        records: the last record of each case, of all journals.
        begun: cases that were begun but have not ended.
        ours: cases whose files are of this program, whatever decided them.
    """

    def __init__(self, out: Path, shard: Shard, settings: str) -> None:
        self.path = out / HIDDEN / f"journal{shard.suffix}.jsonl"
        self.settings = settings
        self.records: dict[str, CaseRecord] = {}
        self.begun: set[str] = set()
        self.ours: set[str] = set()
        for path in sorted(self.path.parent.glob("journal*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if "begun" in row:
                    self.begun.add(row["begun"])
                    self.ours.add(row["begun"])
                    continue
                record = CaseRecord.model_validate(row)
                self.begun.discard(record.case)
                if record.settings == self.settings:
                    self.records[record.case] = record
            except (ValueError, TypeError, ValidationError):  # a line that was cut short
                continue

    def begin(self, case: str) -> None:
        """Note that a case's files may appear from now on."""
        self.begun.add(case)
        self.ours.add(case)
        self._add({"begun": case})

    def end(self, record: CaseRecord) -> None:
        """Record the result of a case."""
        self.records[record.case] = record
        self.begun.discard(record.case)
        self._add(record.model_dump(mode="json"))

    def _add(self, row: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a+b") as file:
                # After a line that was cut short a new one begins.
                end = file.seek(0, os.SEEK_END)
                if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                    file.write(b"\n")
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SaveError(
                f"{self.path} cannot be written ({error.strerror}); free some space, and start the same "
                "command again: it goes on from there."
            ) from None


@contextmanager
def locked(out: Path, shard: Shard) -> Iterator[None]:
    """Hold the output folder against other runs; shards of one count may work side by side.

    Raises:
        SettingsError: another run is at work there.
        SaveError: the folder cannot be made.
    """
    folder = out / HIDDEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"The folder {out} cannot be written to ({error.strerror}); give another.") from None
    mine = folder / f"lock{shard.suffix}"
    try:
        with FileLock(mine, timeout=0):
            for other in folder.glob("lock*"):
                same = not shard.whole and other.name.endswith(f"-of-{shard.count}")
                if other != mine and not same:
                    with FileLock(other, timeout=0):
                        pass
            yield
    except Timeout:
        raise SettingsError(
            f"Another run is at work in {out}; wait for its end, or give another output folder."
        ) from None


def settle(out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> str:
    """Compare the settings with those of earlier results in the folder, and store them.

    Args:
        overwrite: whether other results are made again instead of refused.

    Returns:
        the hash of what decides them.

    Raises:
        SettingsError: results of other settings are there; says which.
    """
    path = out / HIDDEN / "settings.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before == identity:
        return hash_of(identity)
    if before is not None and not overwrite:
        names = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
        changed = ", ".join(
            f"{name}: {_short(before.get(name))}, here {_short(identity.get(name))}" for name in names
        )
        raise SettingsError(
            f"The folder {out} holds results of other settings ({changed}); give another output folder, or "
            "--overwrite to make them again."
        )
    save_whole(path, json.dumps(identity, indent=1) + "\n")
    return hash_of(identity)


def hash_of(identity: Mapping[str, Any]) -> str:
    """Return a short hash of the settings that decide the masks."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] + "…" if len(text) > 40 else text
