"""One thread that runs the model, for everybody in turn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

Result = TypeVar("Result")


class ModelWorker:
    """First come, first served. A session asks for one thing at a time, so users take turns."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._lock = Lock()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Jobs that wait or run."""
        return self._waiting

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Queue a job."""
        with self._lock:
            self._waiting += 1
        future = self._pool.submit(job)
        future.add_done_callback(self._done)
        return future

    def run(self, job: Callable[[], Result]) -> Result:
        """Queue a job and wait for what it returns or raises."""
        return self.submit(job).result()

    def close(self) -> None:
        """Stop after the job that runs; what waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, _: Future) -> None:
        with self._lock:
            self._waiting -= 1
