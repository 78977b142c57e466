"""Background training of an adapter on accepted cases, with its evaluation.

One case in four is held out from training. The new adapter and the one in use are then evaluated on the
held-out cases with the same simulated user. Each starts with the objects that it finds automatically, as in a
new case on the page. The new adapter is offered only if it needs fewer clicks. Training and evaluation are
commands of this program (`finetune`, `evaluate`) in separate processes. Their state is stored in files, so
that nothing is lost when the page is closed or the server stops: the run can be resumed.
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
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock, Thread

from filelock import FileLock, Timeout
from pydantic import ValidationError

from medsam_app.atomic import write_whole
from medsam_app.datasets.gathering import NAMES_FILE
from medsam_app.errors import SettingsError
from medsam_app.worklist.teaching_state import (
    CLICKS,
    TARGET,
    Example,
    Stage,
    TeachingState,
    clicks_of,
)

#: Smallest number of accepted cases to train on.
FEWEST = 4
#: One case in this many is held out, starting with the second.
HELD_OUT_EVERY = 4
JOB, LOG = "job.json", "log.txt"
_RUNNING = ("teaching", "measuring")
INTERRUPTED = "Teaching was interrupted when the server stopped; it can go on from there."


class Teaching:
    """Teaching runs of one worklist, one at a time across all servers; thread-safe.

    Args:
        folder: folder of lists, logs and adapters; created when needed. A lock file next to it is locked
            during a run.
        model: name of the base model.
        weights: weights of the base model, if not the default ones.
        device: device of the processes.
        options: further options of `medsam-app finetune`.
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
        self._file_lock = FileLock(f"{self.folder}.lock", thread_local=False, timeout=0)
        self._job: TeachingState | None = None

    @property
    def job(self) -> TeachingState | None:
        """State of the last run, or None; another server may be executing it."""
        with self._lock:
            if not self._file_lock.is_locked:
                self._job = self._read()
                if self._job is not None and self._job.stage in _RUNNING:
                    with suppress(Timeout), self._file_lock:  # no process executes the run any more
                        self._set_stage("interrupted", INTERRUPTED)
            return self._job

    @property
    def running(self) -> bool:
        """Whether a run started by this process is in progress."""
        return self._file_lock.is_locked

    @property
    def adapter(self) -> Path:
        """Path of the adapter of the last run; the file exists after training."""
        return self.folder / "taught.safetensors"

    def start(
        self,
        examples: Sequence[Example],
        *,
        minutes: float = 20.0,
        in_use: Path | None = None,
        names: Mapping[int, str] | None = None,
    ) -> TeachingState:
        """Start a run, which replaces the last one.

        Args:
            examples: accepted cases.
            minutes: minutes of training, in addition to loading and evaluation.
            in_use: adapter in use; None for the base model alone.
            names: names of label values.

        Raises:
            SettingsError: a run is in progress, or there are too few cases.
        """
        with self._lock:
            if len(examples) < FEWEST:
                raise SettingsError(
                    f"Teaching needs at least {FEWEST} accepted cases, one of them to measure on; got "
                    f"{len(examples)}: accept more."
                )
            with self._acquire_lock():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                training, held_out = self._write_cases(examples, names)
                job = TeachingState(
                    stage="teaching",
                    began=datetime.now(UTC).isoformat(timespec="seconds"),
                    minutes=minutes,
                    learned=training,
                    kept=held_out,
                    in_use=None if in_use is None else str(in_use.resolve()),
                )
                return self._launch(job)

    def resume(self) -> TeachingState:
        """Resume a run that was cancelled or interrupted.

        Raises:
            SettingsError: there is no such run, or one is in progress.
        """
        with self._lock:
            job = self.job
            with self._acquire_lock():
                if job is None or job.stage not in ("cancelled", "interrupted"):
                    raise SettingsError("There is no teaching to go on with; start it.")
                return self._launch(job)

    def cancel(self) -> None:
        """Stop the run; it can be resumed."""
        with self._lock:
            if self.running:
                self._set_stage("cancelled", "Teaching was stopped; it can go on from there.")
                self._stop()

    def close(self) -> None:
        """Stop the run when the server stops."""
        with self._lock:
            if self.running and self._job is not None and self._job.stage in _RUNNING:
                self._set_stage("interrupted", INTERRUPTED)
                self._stop()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def progress(self) -> float:
        """Return the fraction of the training that is done, from 0 to 1."""
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

    # Private

    @contextmanager
    def _acquire_lock(self) -> Iterator[None]:
        """Acquire the lock file for a run that is started in the context.

        The run releases it when it ends; an error in the context releases it at once.

        Raises:
            SettingsError: a run is in progress, here or on another server.
        """
        if self.running:
            raise SettingsError("Teaching is under way already; wait for it or stop it.")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._file_lock.acquire()
        except Timeout:
            raise SettingsError(
                "Another server teaches on this worklist; wait for it, or stop it there."
            ) from None
        try:
            yield
        except BaseException:
            self._file_lock.release()
            raise

    def _write_cases(
        self, examples: Sequence[Example], names: Mapping[int, str] | None
    ) -> tuple[list[str], list[str]]:
        """Write the list of cases and label names; return the names of training and held-out cases."""
        ordered = sorted(examples, key=lambda example: example.case)
        held_out = ordered[1::HELD_OUT_EVERY]
        training = [example for example in ordered if example not in held_out]
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(("case", "image", "label", "split"))
        for split, cases in (("train", training), ("dev", held_out)):
            rows.writerows(
                (example.case, example.image.resolve(), example.label.resolve(), split) for example in cases
            )
        write_whole(self.folder / "cases.csv", table.getvalue())
        if names:
            names_by_text = {str(value): name for value, name in names.items()}
            write_whole(self.folder / NAMES_FILE, json.dumps(names_by_text))
        return [example.case for example in training], [example.case for example in held_out]

    def _launch(self, job: TeachingState) -> TeachingState:
        self._job = job
        self._set_stage("teaching", "")
        self._thread = Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()
        return job

    def _run(self, job: TeachingState) -> None:
        try:
            self._execute(job)
        finally:
            with self._lock:
                self._file_lock.release()

    def _execute(self, job: TeachingState) -> None:
        """Train, evaluate, and decide whether to offer the adapter."""
        cases = str(self.folder / "cases.csv")
        length = () if "--steps" in self.options else ("--minutes", str(job.minutes))
        arguments = [
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
        trained = self.adapter.with_suffix(".html").exists() or self._command(arguments)
        if not trained or not self._enter_stage("measuring"):
            return
        clicks = {}
        for name, adapter in (("after", str(self.adapter)), ("before", job.in_use)):
            scores = self.folder / f"{name}.json"
            evaluation = [
                "evaluate",
                cases,
                "--split",
                "dev",
                "--clicks",
                str(CLICKS),
                "--target",
                str(TARGET),
            ]
            evaluation += ["--first", "found", *self._model, "--no-distances", "--no-refine"]
            evaluation += ["--json", str(scores), "--overwrite"]
            scores.unlink(missing_ok=True)
            evaluation += [] if adapter is None else ["--adapter", adapter]
            if not self._command(evaluation, makes=scores):
                return
            clicks[name] = clicks_of(json.loads(scores.read_text()))
        with self._lock:
            job.before, job.after = clicks["before"], clicks["after"]
            better = job.after.mean < job.before.mean
            sentence = (
                f"The new adapter needs {job.after.mean:.1f} clicks to a Dice of {TARGET}, what is in use "
                f"{job.before.mean:.1f}, on {len(job.kept)} case{'s' if len(job.kept) > 1 else ''} kept apart"
            )
            self._set_stage(
                *(("offered", f"{sentence}.") if better else ("no better", f"{sentence}: it is not offered."))
            )

    def _command(self, arguments: Sequence[str], *, makes: Path | None = None) -> bool:
        """Run a command of this program in a process, and return whether it succeeded.

        Args:
            arguments: command and options.
            makes: output file; if it exists, exit code 1 (some cases were skipped) also counts as success.
        """
        with (self.folder / LOG).open("ab") as log:
            with self._lock:
                if self._job is None or self._job.stage not in _RUNNING:
                    return False
                self._process = subprocess.Popen(
                    # The child stops when its standard input is closed, for example because this process is
                    # killed.
                    [sys.executable, "-m", "medsam_app.cli.supervised", *arguments, *self._common],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self.folder,
                )
            with self._process:  # closes the standard input at the end
                code = self._process.wait()
        with self._lock:
            self._process = None
            done = code == 0 or (code == 1 and makes is not None and makes.exists())
            if not done and self._job is not None and self._job.stage in _RUNNING:
                last_line = [line for line in self.log().splitlines() if line.strip()][-1:]
                self._set_stage(
                    "failed", f"Teaching failed: {last_line[0] if last_line else 'the log says no more'}"
                )
            return done

    def _enter_stage(self, stage: Stage) -> bool:
        """Enter the next stage and return True, unless the run was stopped."""
        with self._lock:
            if self._job is None or self._job.stage not in _RUNNING:
                return False
            self._set_stage(stage, "")
            return True

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def _set_stage(self, stage: Stage, message: str) -> None:
        with self._lock:
            assert self._job is not None
            self._job.stage, self._job.message = stage, message
            write_whole(self.folder / JOB, self._job.model_dump_json(indent=1))

    def _read(self) -> TeachingState | None:
        try:
            return TeachingState.model_validate_json((self.folder / JOB).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None
