"""Engine on many processes or machines: Ray actors that each hold the model.

All of them see the input and the output folder under the same paths. A worker that dies loses the cases that
it was at to a new try on another; a case at which workers die again and again has failed.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medsam_app.batch.job import SIDE_BY_SIDE, Job
from medsam_app.batch.record import CaseRecord
from medsam_app.batch.settings import BatchSettings
from medsam_app.batch.worker import Worker
from medsam_app.errors import SettingsError

#: How often a case is given to a worker at most, where workers die at it.
TRIES = 3
#: Cores of a worker without a GPU.
CORES = 2


class RayEngine:
    """Cases on Ray actors.

    Args:
        settings, out: as for `Worker`, with whole paths.
        device: 'auto', 'cpu' or 'cuda'. With 'auto' workers have a GPU each where the cluster has any.
        workers: how many; None for as many as the cluster's GPUs or cores allow.
        address: of a cluster; None for one on this machine that ends with the engine's run.

    Raises:
        SettingsError: Ray is not installed, or no cluster answers.
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
        there = ray.cluster_resources()
        self.gpu = device.startswith("cuda") or (device == "auto" and there.get("GPU", 0) >= 1)
        most = int(there.get("GPU", 0)) if self.gpu else int(there.get("CPU", 1)) // CORES
        self.count = workers or max(1, most)
        self.cores = 1 if self.gpu else max(1, min(CORES, int(there.get("CPU", 1)) // self.count))

    def run(self, jobs: Iterable[Job]) -> Iterator[CaseRecord]:
        """As `Engine.run`; raises `NoRoom` as soon as a worker does, `SettingsError` where none can begin."""
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
            said = str(error).strip().splitlines()[-1].strip()
            raise SettingsError(
                f"A worker of the Ray cluster could not begin ({said}); medsam_app, the weights and the "
                "adapter must be there on each of its machines."
            ) from None
        under_way: dict[Any, tuple[Any, Job]] = {}
        again: list[Job] = []
        tries: Counter[str] = Counter()
        while True:
            load = Counter(id(actor) for actor, _ in under_way.values())
            for _ in range(SIDE_BY_SIDE):
                for actor in actors:
                    if load[id(actor)] < SIDE_BY_SIDE:
                        job = again.pop() if again else next(jobs, None)
                        if job is not None:
                            under_way[actor.run.remote(job)] = (actor, job)
                            load[id(actor)] += 1
            if not under_way:
                return
            (ended, *_), _ = ray.wait(list(under_way), num_returns=1)
            actor, job = under_way.pop(ended)
            try:
                yield ray.get(ended)
            except ray.exceptions.RayActorError:
                if actor in actors:  # the first of its cases to tell
                    actors[actors.index(actor)] = self._actor()
                tries[job.case] += 1
                if tries[job.case] < TRIES:
                    again.append(job)
                else:
                    yield job.record(outcome="failed", message=_died(job))
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None

    def _actor(self) -> Any:
        """Worker actor; if it dies, it is restarted here, where its cases are known, and not by Ray."""
        options = {"num_gpus": 1} if self.gpu else {}
        remote = self.ray.remote(
            num_cpus=self.cores,
            max_concurrency=SIDE_BY_SIDE,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", self.cores))}},
            **options,
        )(Worker)
        device = "cuda" if self.gpu else "cpu"
        return remote.remote(self.settings, self.out, device=device)


def _check_address(address: str) -> None:
    """Fail early: Ray itself waits for minutes if no cluster answers."""
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
        f"'{job.found.path.name}' by itself."
    )
