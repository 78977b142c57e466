"""Worker thread of the model, with a queue that serves owners in rotation."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, TypeVar

from medsam_app.errors import SettingsError

Result = TypeVar("Result")
#: Largest number of waiting jobs per owner.
MOST_WAITING = 64
_Job = tuple[Future, Callable[[], Any]]


class ModelWorker:
    """Worker thread with a round-robin queue: one job per owner and round.

    Jobs of one owner run in the order of submission. Jobs of the owner '' belong to the server.

    Args:
        most_waiting: largest number of waiting jobs per owner; more are refused.
    """

    def __init__(self, *, most_waiting: int = MOST_WAITING) -> None:
        self.most_waiting = most_waiting
        self._turns: OrderedDict[str, deque[_Job]] = OrderedDict()  # in order of the owners' turns
        self._changed = Condition()
        self._running = 0
        self._closed = False
        self._thread = Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait or run."""
        with self._changed:
            return self._running + sum(map(len, self._turns.values()))

    def has(self, owner: str) -> bool:
        """Return whether a job of an owner is waiting."""
        with self._changed:
            return owner in self._turns

    def submit(self, job: Callable[[], Result], owner: str = "") -> Future[Result]:
        """Queue a job of an owner.

        Raises:
            SettingsError: too many jobs of the owner are already waiting.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            jobs = self._turns.setdefault(owner, deque())  # a new owner comes last
            if len(jobs) >= self.most_waiting:
                raise SettingsError(
                    f"{len(jobs)} requests of this session wait for the model already; "
                    "wait for their answers before you ask for more."
                )
            jobs.append((future, job))
            self._changed.notify()
        return future

    def run(self, job: Callable[[], Result], owner: str = "") -> Result:
        """Queue a job; return its result or raise its error."""
        return self.submit(job, owner).result()

    def close(self) -> None:
        """Stop after the running job and cancel the waiting ones."""
        with self._changed:
            self._closed = True
            dropped = [future for jobs in self._turns.values() for future, _ in jobs]
            self._turns.clear()
            self._changed.notify()
        for future in dropped:
            future.cancel()

    def _next(self) -> _Job | None:
        """Wait for the next job and return it; return None when the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._closed)
            if self._closed:
                return None
            owner, jobs = self._turns.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._turns[owner] = jobs  # at the end: every other owner has a turn first
            self._running = 1
            return job

    def _work(self) -> None:
        while (queued := self._next()) is not None:
            future, job = queued
            if future.set_running_or_notify_cancel():
                try:
                    result = job()
                except BaseException as error:
                    self._running = 0
                    future.set_exception(error)
                else:
                    self._running = 0
                    future.set_result(result)
            self._running = 0
            del queued, future, job  # release the memory of the job before waiting for the next one
