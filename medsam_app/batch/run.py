"""Folder runs: every case gets its mask or an error message.

    result = segment_folder("images", "masks", prompts="clicks.csv")
    for case in result.cases:
        print(case.case, case.outcome, case.message)

An interrupted run resumes where it stopped: finished cases with the same settings, image and prompts are
kept. Each case is a function of its own files and the settings alone, so whichever process makes it, in
whatever order, the mask is the same.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from medsam_app.batch.job import SIDE_BY_SIDE, Job, ending_for
from medsam_app.batch.prompts import Prompts
from medsam_app.batch.record import CaseRecord, Journal, Shard, hash_of, locked, read_shard, settle
from medsam_app.batch.report import write_overview, write_report
from medsam_app.batch.settings import BatchSettings, make_settings
from medsam_app.batch.worker import Worker
from medsam_app.errors import SaveError, SettingsError, unknown_name
from medsam_app.io.volume_folder import find_volumes

ENGINES = ("local", "ray")
#: Settings that are files or folders.
_PATHS = ("weights", "adapter", "net", "prompts", "masks")


class CaseEngine(Protocol):
    """Engine that runs cases and yields their records in order of completion."""

    def run(self, jobs: Iterable[Job]) -> Iterator[CaseRecord]:
        """Yield jobs one by one as capacity becomes free."""
        ...


@dataclass(frozen=True)
class FolderPlan:
    """Cases that a run will process.

    Attributes:
        jobs: all cases of the shard.
        todo: those that are not done yet, in the order in which they are taken.
        done: records of those that are.
        names: of the cases of all shards.
    """

    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    done: tuple[CaseRecord, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class FolderResult:
    """Result of a folder run.

    Attributes:
        output: the folder of the masks.
        cases: a record for each, by name; of those that were done before too.
        made: names of the cases that this run segmented or tried to.
        stopped: whether the run was asked to stop before its end.
    """

    output: Path
    cases: tuple[CaseRecord, ...]
    made: tuple[str, ...]
    stopped: bool = False

    def having(self, outcome: str) -> list[CaseRecord]:
        """The cases of an outcome: "done", "failed" or "skipped"."""
        return [case for case in self.cases if case.outcome == outcome]


def segment_folder(  # noqa: PLR0913 - public, by keyword
    folder: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    shard: str | None = None,
    overwrite: bool = False,
    watch: Callable[[CaseRecord, int, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> FolderResult:
    """Segment every volume under a folder into a folder of the same structure.

    Args:
        folder: holds NIfTI, NRRD, MetaImage and DICOM, at any depth.
        output: gets the masks, made where it is not there.
        device: as for `VolumePredictor`.
        engine: 'local', or 'ray' for several processes or machines.
        workers: of Ray, each with a model of its own; None for one a GPU, or one for every two cores.
        ray_address: of a Ray cluster; None for one on this machine that ends with the run.
        shard: 'NUMBER/COUNT', such as '2/8', for one part of the cases.
        overwrite: whether files that are there already are replaced, results of other settings among them.
        watch: called after each case with its record, the number of cases that are done and of all.
        stopped: asked before each case whether to stop.
        settings: fields of `BatchSettings`: model, weights, adapter, prompts, masks, automatic, ...

    Raises:
        MedsamError: something that concerns the whole run; what concerns a case is in its record.
        NoRoom: the disk is full; the same call resumes from there.
    """
    folder, output = _whole(folder), _whole(output)
    if engine not in ENGINES:
        raise SettingsError(unknown_name("engine", engine, ENGINES))
    chosen, part = make_settings(settings), read_shard(shard)
    with locked(output, part):
        identity = chosen.identity()
        digest = settle(output, identity, overwrite=overwrite)
        journal = Journal(output, part, digest)
        plan = plan_folder(folder, output, chosen, part, journal, overwrite=overwrite)
        records = {record.case: record for record in plan.done}
        made: list[str] = []
        options = {"input": str(folder), "engine": engine, "workers": workers, "device": device}
        options |= {name: str(path) for name in _PATHS if (path := getattr(chosen, name)) is not None}
        report = partial(
            write_report, output, shard=part, identity=identity, options=options, began=datetime.now(UTC)
        )
        report(list(records.values()), finished=False)

        def taken() -> Iterator[Job]:
            for job in plan.todo:
                if stopped():
                    return
                journal.begin(job.case)
                yield job

        def note(record: CaseRecord) -> None:
            old = journal.records.get(record.case)
            journal.end(record)
            if old is not None:
                _take_away(output, old, record)
            records[record.case] = record
            if watch is not None:
                watch(record, len(records), len(plan.jobs))

        for job in (job for job in plan.todo if job.found.problem or job.asked.missing):
            outcome = "failed" if job.found.problem else "skipped"
            why = job.found.problem or f"Nothing says where anything is: {job.asked.missing}."
            note(job.record(outcome=outcome, message=why))
        plan = replace(plan, todo=tuple(job for job in plan.todo if job.case not in records))
        try:
            if plan.todo:
                for record in _engine(engine, chosen, output, device, workers, ray_address).run(taken()):
                    made.append(record.case)
                    note(record)
        finally:
            cases = tuple(records[job.case] for job in plan.jobs if job.case in records)
            with suppress(SaveError):  # what ended the run says more
                report(cases, finished=len(cases) == len(plan.jobs))
                everywhere = Journal(output, part, digest).records  # of all shards
                write_overview(output, [everywhere[name] for name in plan.names if name in everywhere])
        return FolderResult(output, cases, tuple(made), stopped=len(cases) < len(plan.jobs))


def look_at_folder(
    folder: str | Path, output: str | Path, *, shard: str | None = None, **settings: Any
) -> FolderPlan:
    """Return what `segment_folder` would do; write nothing.

    Raises:
        MedsamError: as `segment_folder`, what only a run can find apart.
    """
    folder, output = _whole(folder), _whole(output)
    chosen, part = make_settings(settings), read_shard(shard)
    journal = Journal(output, part, hash_of(chosen.identity()))
    return plan_folder(folder, output, chosen, part, journal, overwrite=True)


def _whole(path: str | Path) -> Path:
    """A path that other processes find too."""
    return Path(path).expanduser().absolute()


def plan_folder(
    folder: Path,
    output: Path,
    settings: BatchSettings,
    shard: Shard,
    journal: Journal,
    *,
    overwrite: bool = False,
) -> FolderPlan:
    """Return the cases of a shard, and the jobs that are left to do.

    Raises:
        MedsamError: no volumes, prompts that cannot be read, or files in the way.
    """
    if output.resolve() == folder.resolve():
        raise SaveError(f"The masks would lie among the images in {folder}; give another output folder.")
    beside = [path for path in (settings.prompts, settings.masks) if path is not None]
    found = find_volumes(folder, leave_out=[output, *beside])
    asked = Prompts(folder, settings).of(found)
    if all(each.missing for each in asked):
        raise SettingsError(
            f"Nothing says where the objects are: for '{found[0].case}', {asked[0].missing}; give prompts or "
            "masks, or an adapter that was taught labels and 'automatic'."
        )
    jobs = []
    for each, what in zip(found, asked, strict=True):
        if zlib.crc32(each.case.encode("utf-8", "surrogateescape")) % shard.count == shard.number - 1:
            ending = ending_for(each.path, settings.format)
            place = output / (each.case if settings.separate else each.case + ending)
            key = _key(each.path, *what.files) + _digest(repr(what.rows))
            jobs.append(Job(each, what, place, ending, journal.settings, key))
    done = {job.case: record for job in jobs if (record := _still_good(job, journal, output)) is not None}
    todo = [job for job in jobs if job.case not in done]
    in_the_way = [job.outputs for job in todo if job.case not in journal.ours and job.outputs.exists()]
    if in_the_way and not overwrite:
        more = f" and {len(in_the_way) - 1} more" if len(in_the_way) > 1 else ""
        raise SaveError(
            f"{in_the_way[0]}{more} exist already and are not of a run in this folder; give another output "
            "folder, or --overwrite to replace them."
        )
    # What was at work when a run was ended comes last: if that was a case's fault, the others are done first.
    todo.sort(key=lambda job: job.case in journal.begun)
    return FolderPlan(tuple(jobs), tuple(todo), tuple(done.values()), tuple(each.case for each in found))


def _still_good(job: Job, journal: Journal, output: Path) -> CaseRecord | None:
    """Return the record of a case done from the same files with its outputs in place, else None."""
    record = journal.records.get(job.case)
    if record is None or record.outcome != "done" or record.key != job.key or not record.outputs:
        return None
    for each in record.outputs:
        path = output / each.path
        if not path.is_file() or path.stat().st_size != each.bytes:
            return None
    return record


def _take_away(output: Path, old: CaseRecord, new: CaseRecord) -> None:
    """Remove files of a case from an earlier run that are no longer produced."""
    kept = {each.path for each in new.outputs}
    for each in old.outputs:
        if each.path not in kept:
            (output / each.path).unlink(missing_ok=True)


def _key(*paths: Path) -> str:
    """Hash of files by name, size and time; of all in a folder."""
    lines = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                facts = file.stat()
                lines.append(f"{file.name} {facts.st_size} {facts.st_mtime_ns}")
    return _digest("\n".join(lines))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _engine(
    name: str, settings: BatchSettings, out: Path, device: str, workers: int | None, address: str | None
) -> CaseEngine:
    if name == "ray":
        from medsam_app.batch.ray_engine import RayEngine

        return RayEngine(settings, out, device=device, workers=workers, address=address)
    if workers not in (None, 1) or address is not None:
        raise SettingsError("--workers and --ray-address are for --engine ray; give it too.")
    return LocalEngine(Worker(settings, out, device=device))


class LocalEngine:
    """Cases in this process: while one is in the model, others are read and written."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, jobs: Iterable[Job]) -> Iterator[CaseRecord]:
        """Raise `NoRoom` after the cases in progress have ended."""
        waiting: set[Future[CaseRecord]] = set()
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="case") as pool:
            for job in jobs:
                waiting.add(pool.submit(self.worker.run, job))
                if len(waiting) == SIDE_BY_SIDE:
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (each.result() for each in ended)
            for each in waiting:
                yield each.result()
