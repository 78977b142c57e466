"""Records of a folder run: one per case, in a journal that survives interruptions.

The folder `.medsam-app/` in the output folder holds the state that runs share: the settings that determine
the masks (`settings.json`), one journal per run or shard, and one lock per active run. A line is appended to
the journal when a case begins and when it ends.
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


class _FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectRecord(_FrozenModel):
    """A segmented object.

    Attributes:
        label, name: of the object.
        voxels, volume_ml: size of its mask.
        prompts: number of prompts; 0 for a label that the adapter found without prompts.
        unmet: number of prompts that the mask does not honour.
        score: predicted Dice from 0 to 1; None without prompts.
    """

    label: int
    name: str
    voxels: int
    volume_ml: float
    prompts: int = 0
    unmet: int = 0
    score: float | None = None


class OutputRecord(_FrozenModel):
    """An output file: its path within the output folder, with '/', and its size in bytes."""

    path: str
    bytes: int


class CaseRecord(_FrozenModel):
    """Result of one case.

    Attributes:
        case: name: path within the input folder without suffix, with '/'.
        image: file or folder.
        series: UID of a DICOM series.
        outcome: "done", "failed", or "skipped" for a case without prompts.
        message: why the case failed or was skipped, in a sentence.
        warnings: warnings for the user, in sentences.
        asked: source of the prompts: "prompt file", "table", "mask" or "automatic".
        objects: one record per object; empty for a failed case.
        outputs: written files, label maps first.
        thumbnail: path of the thumbnail within the output folder.
        seconds: duration by step ("read", "wait", "segment", "write").
        peak_memory: peak memory of the process in bytes from the start of segmentation to the end of the
            case; None if the system does not report it.
        device: device of the model.
        settings: hash of the settings that determined the masks.
        key: hash of name, size and time of the image and prompt files.
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
        """Number of prompts that the masks do not honour."""
        return sum(record.unmet for record in self.objects)

    @property
    def empty(self) -> list[str]:
        """Names of the objects without voxels."""
        return [record.name for record in self.objects if not record.voxels]


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count` of the cases of a folder, counted from 1; 1 of 1 is the whole folder."""

    number: int = 1
    count: int = 1

    @property
    def whole(self) -> bool:
        """Whether the shard is the whole folder."""
        return self.count == 1

    @property
    def suffix(self) -> str:
        """Suffix of the file names of this shard."""
        return "" if self.whole else f"-{self.number}-of-{self.count}"


def read_shard(text: str | None) -> Shard:
    """Parse a shard such as '2/8'; None is the whole folder.

    Raises:
        SettingsError: the text has another format.
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
    """Journals of an output folder, and the one that this run appends to.

    Args:
        out: the output folder.
        shard: part of the cases that this run processes.
        settings: hash of the settings that determine the masks; records with other settings are ignored.

    Attributes:
        records: last record of each case, over all journals.
        begun: cases that began but did not end.
        owned: cases whose files were written by this program, with any settings.
    """

    def __init__(self, out: Path, shard: Shard, settings: str) -> None:
        self.path = out / HIDDEN / f"journal{shard.suffix}.jsonl"
        self.settings = settings
        self.records: dict[str, CaseRecord] = {}
        self.begun: set[str] = set()
        self.owned: set[str] = set()
        for path in sorted(self.path.parent.glob("journal*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if "begun" in row:
                    self.begun.add(row["begun"])
                    self.owned.add(row["begun"])
                    continue
                record = CaseRecord.model_validate(row)
                self.begun.discard(record.case)
                if record.settings == self.settings:
                    self.records[record.case] = record
            except (ValueError, TypeError, ValidationError):  # a truncated line
                continue

    def begin(self, case: str) -> None:
        """Record that files of a case may exist from now on."""
        self.begun.add(case)
        self.owned.add(case)
        self._add({"begun": case})

    def end(self, record: CaseRecord) -> None:
        """Record the result of a case."""
        self.records[record.case] = record
        self.begun.discard(record.case)
        self._add(record.model_dump(mode="json"))

    def _add(self, row: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a+b") as file:
                # Start a new line after a truncated one.
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
    """Lock the output folder against other runs; shards of the same count may run concurrently.

    Raises:
        SettingsError: another run uses the folder.
        SaveError: the folder cannot be created.
    """
    folder = out / HIDDEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"The folder {out} cannot be written to ({error.strerror}); give another.") from None
    lock = folder / f"lock{shard.suffix}"
    try:
        with FileLock(lock, timeout=0):
            for path in folder.glob("lock*"):
                compatible = not shard.whole and path.name.endswith(f"-of-{shard.count}")
                if path != lock and not compatible:
                    with FileLock(path, timeout=0):
                        pass
            yield
    except Timeout:
        raise SettingsError(
            f"Another run is at work in {out}; wait for its end, or give another output folder."
        ) from None


def store_settings(out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> str:
    """Compare the settings with those of earlier results in the folder, and store them.

    Args:
        overwrite: replace results with other settings instead of raising an error.

    Returns:
        Hash of the settings.

    Raises:
        SettingsError: the folder holds results with other settings; the message lists the differences.
    """
    path = out / HIDDEN / "settings.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None
    if stored == identity:
        return hash_of(identity)
    if stored is not None and not overwrite:
        names = sorted(name for name in {*stored, *identity} if stored.get(name) != identity.get(name))
        changed = ", ".join(
            f"{name}: {_short(stored.get(name))}, here {_short(identity.get(name))}" for name in names
        )
        raise SettingsError(
            f"The folder {out} holds results of other settings ({changed}); give another output folder, or "
            "--overwrite to make them again."
        )
    save_whole(path, json.dumps(identity, indent=1) + "\n")
    return hash_of(identity)


def hash_of(identity: Mapping[str, Any]) -> str:
    """Return a short hash of the settings that determine the masks."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] + "…" if len(text) > 40 else text
