"""Teaching from the page: runs by worklist, and models with the resulting adapters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

from medsam_app.adapters.header import read_header
from medsam_app.browser.state.worker import ModelWorker
from medsam_app.errors import MedsamError, SettingsError
from medsam_app.predict.predictor import AnyModel
from medsam_app.worklist.adapter_in_use import TEACHING, adapter_of, examples, use_adapter
from medsam_app.worklist.store import Worklist
from medsam_app.worklist.teaching_job import FEWEST, Teaching

#: Models with an adapter that are kept loaded in addition to the server's own.
MOST_MODELS = 2


class TeachingRuns:
    """Teaching runs and adapters of a server's worklists.

    Args:
        worker: worker that loads models.
        load: function that loads the server's model with an adapter.
        make: function that creates a `Teaching` in a folder, for the server's model.
        adapter: adapter that the server was started with.
    """

    def __init__(
        self,
        worker: ModelWorker,
        *,
        load: Callable[[Path], AnyModel],
        make: Callable[[Path], Teaching],
        adapter: Path | None,
    ) -> None:
        self._worker, self._load, self._make, self._adapter = worker, load, make, adapter
        self._lock = Lock()
        self._runs: dict[Path, Teaching] = {}
        self._models: OrderedDict[Path, Future[AnyModel]] = OrderedDict()
        self._usable_counts: dict[Path, tuple[str, int]] = {}

    def model(self, worklist: Worklist) -> Future[AnyModel] | None:
        """Return the model with the adapter that a worklist uses; None if it uses none."""
        adapter = adapter_of(worklist)
        if adapter is None:
            return None
        with self._lock:
            if adapter not in self._models:
                self._models[adapter] = self._worker.submit(lambda: self._load(adapter))
            self._models.move_to_end(adapter)
            while len(self._models) > MOST_MODELS:
                self._models.popitem(last=False)
            return self._models[adapter]

    def run_of(self, worklist: Worklist) -> Teaching:
        """Return the teaching run of a worklist, in progress or not."""
        with self._lock:
            if worklist.path not in self._runs:
                self._runs[worklist.path] = self._make(worklist.path.parent / TEACHING)
            return self._runs[worklist.path]

    def do(self, worklist: Worklist, what: str, *, minutes: float, who: str) -> None:
        """Start, stop or resume a run, or use its adapter or stop using it.

        Args:
            worklist: worklist of the run.
            what: 'start', 'cancel', 'resume', 'use' or 'drop'.
            minutes: length of a run that is started, in minutes.
            who: name of the user.

        Raises:
            SettingsError: the command is not possible now.
            AdapterError, SaveError: the adapter cannot be used.
        """
        run = self.run_of(worklist)
        if what == "start":
            cases, names = examples(worklist)
            run.start(cases, minutes=minutes, in_use=adapter_of(worklist) or self._adapter, names=names)
        elif what == "resume":
            run.resume()
        elif what == "cancel":
            run.cancel()
        elif what == "drop":
            use_adapter(worklist, None, who=who)
        elif run.job is None or run.job.stage != "offered":
            raise SettingsError("No adapter is offered; teach one first.")
        else:
            use_adapter(worklist, run.adapter, who=who)
            self.model(worklist)  # start loading before the next request

    def status(self, worklist: Worklist, *, log: bool) -> dict[str, Any]:
        """Return the state of a run and of the adapter in use, for the page.

        Args:
            worklist: worklist of the run.
            log: whether to include the log of the run.
        """
        run, adapter = self.run_of(worklist), adapter_of(worklist)
        job = run.job
        return {
            "stage": job.stage if job else "",
            "message": job.message if job else "",
            "progress": run.progress() if job else 0.0,
            "usable": self._usable(worklist),
            "fewest": FEWEST,
            "in_use": adapter.stem if adapter else "",
            "used": bool(job and job.stage == "offered" and adapter and _same_content(adapter, run.adapter)),
            "log": run.log() if log else None,
        }

    def _usable(self, worklist: Worklist) -> int:
        """Return the number of cases that can be taught from, counted once per stamp of the worklist."""
        stamp = worklist.stamp()
        cached = self._usable_counts.get(worklist.path)
        if cached is None or cached[0] != stamp:
            cached = self._usable_counts[worklist.path] = stamp, len(examples(worklist)[0])
        return cached[1]

    def close(self) -> None:
        """Stop all runs; they can be resumed after the next start."""
        with self._lock:
            for run in self._runs.values():
                run.close()


def _same_content(first: Path, second: Path) -> bool:
    """Return whether two adapter files have the same hash; False if one cannot be read."""
    try:
        return read_header(first).sha256 == read_header(second).sha256
    except MedsamError:
        return False
