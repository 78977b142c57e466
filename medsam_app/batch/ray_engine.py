"""Engine for many processes or machines: Ray actors that each hold the model.

All actors access the input and the output folder under the same paths. If a worker dies, the cases in
progress are retried on another worker. A case fails after several workers died while processing it.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medsam_app.batch.job import CONCURRENT_CASES, Job
from medsam_app.batch.record import CaseRecord
from medsam_app.batch.settings import BatchSettings
from medsam_app.batch.worker import Worker
from medsam_app.errors import SettingsError

#: Maximum number of attempts for a case during which workers die.
TRIES = 3
#: CPU cores of a worker without a GPU.
CORES = 2


class RayEngine:
    """Engine that runs cases on Ray actors.

    Args:
        settings, out: as for `Worker`, with absolute paths.
        device: 'auto', 'cpu' or 'cuda'. With 'auto', each worker has a GPU if the cluster has any.
        workers: number of workers; None for as many as the GPUs or cores of the cluster allow.
        address: address of a cluster; None for a local one that ends with the run.

    Raises:
        SettingsError: Ray is not installed, or no cluster responds.
    """

    def __init__(
        self, settings: BatchSettings, out: Path, *, device: str, workers: int | None, address: str | None
    ) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise SettingsError(
                "--engine ray needs Ray, which is not installed; run 'pip install \"medsam-app[ray]\"'."
            ) from None
        if address is not None:
            _check_address(address)
        self.ray = ray
        self.settings, self.out, self.device = settings, out, device
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
        local: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": os.cpu_count()}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from None
        resources = ray.cluster_resources()
        self.gpu = device.startswith("cuda") or (device == "auto" and resources.get("GPU", 0) >= 1)
        capacity = int(resources.get("GPU", 0)) if self.gpu else int(resources.get("CPU", 1)) // CORES
        self.count = workers or max(1, capacity)
        self.cores = 1 if self.gpu else max(1, min(CORES, int(resources.get("CPU", 1)) // self.count))

    def run(self, jobs: Iterable[Job]) -> Iterator[CaseRecord]:
        """Yield records as `CaseEngine.run`.

        Raises:
            DiskFull: as soon as a worker raises it.
            SettingsError: a worker cannot start.
        """
        try:
            yield from self._run(iter(jobs))
        finally:
            self.ray.shutdown()

    def _run(self, jobs: Iterator[Job]) -> Iterator[CaseRecord]:
        ray = self.ray
        actors = [self._actor() for _ in range(self.count)]
        try:
            ray.get([actor.ready.remote() for actor in actors])
        except ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise SettingsError(
                f"A worker of the Ray cluster could not begin ({reason}); medsam_app, the weights and the "
                "adapter must be there on each of its machines."
            ) from None
        in_progress: dict[Any, tuple[Any, Job]] = {}
        retries: list[Job] = []
        attempts: Counter[str] = Counter()
        while True:
            load = Counter(id(actor) for actor, _ in in_progress.values())
            for _ in range(CONCURRENT_CASES):
                for actor in actors:
                    if load[id(actor)] < CONCURRENT_CASES:
                        job = retries.pop() if retries else next(jobs, None)
                        if job is not None:
                            in_progress[actor.run.remote(job)] = (actor, job)
                            load[id(actor)] += 1
            if not in_progress:
                return
            (future, *_), _ = ray.wait(list(in_progress), num_returns=1)
            actor, job = in_progress.pop(future)
            try:
                yield ray.get(future)
            except ray.exceptions.RayActorError:
                if actor in actors:  # the first of its cases to report this
                    actors[actors.index(actor)] = self._actor()
                attempts[job.case] += 1
                if attempts[job.case] < TRIES:
                    retries.append(job)
                else:
                    yield job.record(outcome="failed", message=_died(job))
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None

    def _actor(self) -> Any:
        """Start a worker actor.

        Ray must not restart it, because only this engine has the list of its cases.
        """
        options = {"num_gpus": 1} if self.gpu else {}
        remote = self.ray.remote(
            num_cpus=self.cores,
            max_concurrency=CONCURRENT_CASES,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", self.cores))}},
            **options,
        )(Worker)
        device = "cuda" if self.gpu else "cpu"
        return remote.remote(self.settings, self.out, device=device)


def _check_address(address: str) -> None:
    """Raise an error at once if no cluster responds: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str | None, error: Exception) -> SettingsError:
    return SettingsError(
        f"No Ray cluster answers at '{address}' ({error}); start one with 'ray start --head', or leave "
        "--ray-address out."
    )


def _died(job: Job) -> str:
    return (
        f"{TRIES} workers ended while they were at it, perhaps for want of memory; try "
        f"'{job.source.path.name}' by itself."
    )
