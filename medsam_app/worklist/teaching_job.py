"""Background training of an adapter on accepted cases, and the decision to offer it.

One case in four is held out and never learned from. When the adapter is there, it and what is in use are
clicked on these by the same careful person, each beginning with what it finds by itself, as a new case does
on the page; it is offered only if it needs fewer clicks. Both steps are commands of this program (`finetune`,
`evaluate`) in processes of their own, and what is known of them stands in files, so that neither a closed
page nor a server that stops loses anything: it resumes where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock, Thread
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from medsam_app.atomic import write_whole
from medsam_app.datasets.gathering import NAMES_FILE
from medsam_app.errors import SettingsError

Stage = Literal["teaching", "measuring", "offered", "no better", "failed", "cancelled", "interrupted"]
#: Smallest number of accepted cases to train on.
FEWEST = 4
#: One case in this many is held out, starting with the second.
KEPT_APART = 4
#: Clicks that the measurement gives an object, and the Dice that they are counted to.
CLICKS, TARGET = 5, 0.85
JOB, LOG = "job.json", "log.txt"
_RUNNING = ("teaching", "measuring")
INTERRUPTED = "Teaching was interrupted when the server stopped; it can go on from there."


@dataclass(frozen=True, kw_only=True)
class Example:
    """An accepted case: its image and its label map."""

    case: str
    image: Path
    label: Path


class Clicks(BaseModel):
    """Clicks to a Dice of `TARGET` on the objects held out.

    Attributes:
        mean: `CLICKS` + 1 counts for an object that never reaches it.
        never: part of the objects that never do.
    """

    model_config = ConfigDict(frozen=True)
    mean: float
    never: float


class TeachingState(BaseModel):
    """State of a teaching run, as stored in its folder.

    Attributes:
        stage: how far it is.
        began: UTC in ISO 8601.
        minutes: of training.
        learned, kept: names of the cases.
        in_use: adapter that it is measured against, or None for the base.
        before, after: clicks with what is in use and with the new adapter, when they were measured.
        message: a sentence for the user.
    """

    model_config = ConfigDict(extra="forbid")
    stage: Stage
    began: str
    minutes: float
    learned: list[str]
    kept: list[str]
    in_use: str | None = None
    before: Clicks | None = None
    after: Clicks | None = None
    message: str = ""


class Teaching:
    """Teaching runs of one worklist, one at a time across all servers; thread-safe.

    Args:
        folder: where lists, logs and adapters go; made when it is needed. Beside it is a file that is locked
            while a run is under way.
        model: name of the base.
        weights: of the base, where it has others than its own.
        device: where it runs.
        options: more options of `medsam-app finetune`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: str = "sam3d_tiny",
        weights: Path | None = None,
        device: str = "auto",
        options: Sequence[str] = (),
    ) -> None:
        self.folder, self.options = folder.resolve(), tuple(options)
        self._base = ["--base", model] if model else []
        self._common = [
            "--device",
            device,
            *([] if weights is None else ["--weights", str(weights.resolve())]),
        ]
        self._model = ["--model", model] if model else []
        self._lock = RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: Thread | None = None
        self._turn = FileLock(f"{self.folder}.lock", thread_local=False, timeout=0)
        self._job: TeachingState | None = None

    @property
    def job(self) -> TeachingState | None:
        """The last run, or None; another server may have it under way."""
        with self._lock:
            if not self._turn.is_locked:
                self._job = self._read()
                if self._job is not None and self._job.stage in _RUNNING:
                    with suppress(Timeout), self._turn:  # no process resumes it
                        self._say("interrupted", INTERRUPTED)
            return self._job

    @property
    def running(self) -> bool:
        """Whether a run started by this process is in progress."""
        return self._turn.is_locked

    @property
    def adapter(self) -> Path:
        """Path of the last run's adapter; exists once training has ended."""
        return self.folder / "taught.safetensors"

    def start(
        self,
        examples: Sequence[Example],
        *,
        minutes: float = 20.0,
        in_use: Path | None = None,
        names: Mapping[int, str] | None = None,
    ) -> TeachingState:
        """Start a run, replacing an earlier one.

        Args:
            examples: accepted cases.
            minutes: of training; loading and measuring come on top.
            in_use: adapter that masks are made with now; None for the base alone.
            names: of label values.

        Raises:
            SettingsError: a run is under way, or the cases are too few.
        """
        with self._lock:
            if len(examples) < FEWEST:
                raise SettingsError(
                    f"Teaching needs at least {FEWEST} accepted cases, one of them to measure on; got "
                    f"{len(examples)}: accept more."
                )
            with self._turn_taken():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                learned, kept = self._write_cases(examples, names)
                job = TeachingState(
                    stage="teaching",
                    began=datetime.now(UTC).isoformat(timespec="seconds"),
                    minutes=minutes,
                    learned=learned,
                    kept=kept,
                    in_use=None if in_use is None else str(in_use.resolve()),
                )
                return self._go(job)

    def resume(self) -> TeachingState:
        """Resume a run that was cancelled or interrupted.

        Raises:
            SettingsError: there is none, or one is under way.
        """
        with self._lock:
            job = self.job
            with self._turn_taken():
                if job is None or job.stage not in ("cancelled", "interrupted"):
                    raise SettingsError("There is no teaching to go on with; start it.")
                return self._go(job)

    def cancel(self) -> None:
        """Stop the run; its progress is kept, and it can be resumed."""
        with self._lock:
            if self.running:
                self._say("cancelled", "Teaching was stopped; it can go on from there.")
                self._stop()

    def close(self) -> None:
        """Stop the run as the server ends."""
        with self._lock:
            if self.running and self._job is not None and self._job.stage in _RUNNING:
                self._say("interrupted", INTERRUPTED)
                self._stop()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def progress(self) -> float:
        """Which part of the training is behind, from 0 to 1."""
        job = self.job
        log = self.folder / "taught.run" / "log.jsonl"
        if job is None or not log.exists():
            return 0.0
        last = [line for line in log.read_text().splitlines() if line.endswith("}")][-1:]
        return min(1.0, json.loads(last[0])["seconds"] / (60 * job.minutes)) if last else 0.0

    def log(self, *, most: int = 200) -> str:
        """Return the last lines of the processes' output."""
        path = self.folder / LOG
        return "\n".join(path.read_text(errors="replace").splitlines()[-most:]) if path.exists() else ""

    # Inside

    @contextmanager
    def _turn_taken(self) -> Iterator[None]:
        """Keep others from starting: until the run that is started within has ended, or none was."""
        if self.running:
            raise SettingsError("Teaching is under way already; wait for it or stop it.")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._turn.acquire()
        except Timeout:
            raise SettingsError(
                "Another server teaches on this worklist; wait for it, or stop it there."
            ) from None
        try:
            yield
        except BaseException:
            self._turn.release()
            raise

    def _write_cases(
        self, examples: Sequence[Example], names: Mapping[int, str] | None
    ) -> tuple[list[str], list[str]]:
        """Write the list of cases and label names; return the names of training and held-out cases."""
        ordered = sorted(examples, key=lambda each: each.case)
        kept = ordered[1::KEPT_APART]
        learned = [each for each in ordered if each not in kept]
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(("case", "image", "label", "split"))
        for split, cases in (("train", learned), ("dev", kept)):
            rows.writerows((each.case, each.image.resolve(), each.label.resolve(), split) for each in cases)
        write_whole(self.folder / "cases.csv", table.getvalue())
        if names:
            known = {str(value): name for value, name in names.items()}
            write_whole(self.folder / NAMES_FILE, json.dumps(known))
        return [each.case for each in learned], [each.case for each in kept]

    def _go(self, job: TeachingState) -> TeachingState:
        self._job = job
        self._say("teaching", "")
        self._thread = Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()
        return job

    def _run(self, job: TeachingState) -> None:
        try:
            self._teach(job)
        finally:
            with self._lock:
                self._turn.release()

    def _teach(self, job: TeachingState) -> None:
        """Train, measure and decide whether to offer the adapter."""
        cases = str(self.folder / "cases.csv")
        length = () if "--steps" in self.options else ("--minutes", str(job.minutes))
        teach = [
            "finetune",
            cases,
            "-o",
            str(self.adapter),
            "--split",
            "train",
            *self._base,
            *length,
            *self.options,
        ]
        done = self.adapter.with_suffix(".html").exists() or self._command(teach)
        if not done or not self._still("measuring"):
            return
        found = {}
        for name, adapter in (("after", str(self.adapter)), ("before", job.in_use)):
            scores = self.folder / f"{name}.json"
            measure = ["evaluate", cases, "--split", "dev", "--clicks", str(CLICKS), "--target", str(TARGET)]
            measure += ["--first", "found", *self._model, "--no-distances"]
            measure += ["--json", str(scores), "--overwrite"]
            scores.unlink(missing_ok=True)
            measure += [] if adapter is None else ["--adapter", adapter]
            if not self._command(measure, makes=scores):
                return
            found[name] = _clicks(json.loads(scores.read_text()))
        with self._lock:
            job.before, job.after = found["before"], found["after"]
            better = job.after.mean < job.before.mean
            said = (
                f"The new adapter needs {job.after.mean:.1f} clicks to a Dice of {TARGET}, what is in use "
                f"{job.before.mean:.1f}, on {len(job.kept)} case{'s' if len(job.kept) > 1 else ''} kept apart"
            )
            self._say(*(("offered", f"{said}.") if better else ("no better", f"{said}: it is not offered.")))

    def _command(self, arguments: Sequence[str], *, makes: Path | None = None) -> bool:
        """Run a command of this program; whether it ended well, or skipped a case and made a file."""
        with (self.folder / LOG).open("ab") as log:
            with self._lock:
                if self._job is None or self._job.stage not in _RUNNING:
                    return False
                self._process = subprocess.Popen(
                    # Its input is ours: it stops when this process is gone, however that came.
                    [sys.executable, "-m", "medsam_app.cli.supervised", *arguments, *self._common],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self.folder,
                )
            with self._process:  # its input is closed when it has ended
                code = self._process.wait()
        with self._lock:
            self._process = None
            done = code == 0 or (code == 1 and makes is not None and makes.exists())
            if not done and self._job is not None and self._job.stage in _RUNNING:
                said = [line for line in self.log().splitlines() if line.strip()][-1:]
                self._say("failed", f"Teaching failed: {said[0] if said else 'the log says no more'}")
            return done

    def _still(self, stage: Stage) -> bool:
        """Enter another stage unless the run was stopped."""
        with self._lock:
            if self._job is None or self._job.stage not in _RUNNING:
                return False
            self._say(stage, "")
            return True

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def _say(self, stage: Stage, message: str) -> None:
        with self._lock:
            assert self._job is not None
            self._job.stage, self._job.message = stage, message
            write_whole(self.folder / JOB, self._job.model_dump_json(indent=1))

    def _read(self) -> TeachingState | None:
        try:
            return TeachingState.model_validate_json((self.folder / JOB).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None


def _clicks(scores: dict[str, Any]) -> Clicks:
    """Of the last method that is clicked: the one that is told the label, where the adapter knows it."""
    reach = [each["reach"][0] for each in scores["summaries"] if each["reach"]][-1]
    return Clicks(mean=reach["clicks"]["value"], never=reach["never"])
