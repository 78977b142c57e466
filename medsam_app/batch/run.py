"""Folder runs: every case gets its mask or an error message.

    result = segment_folder("images", "masks", prompts="clicks.csv")
    for case in result.cases:
        print(case.case, case.outcome, case.message)

An interrupted run resumes where it stopped: finished cases with the same settings, image and prompts are
reused. The mask of a case depends only on its files and the settings, not on the process or the order of
processing.
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

from medsam_app.batch.job import CONCURRENT_CASES, Job, ending_for
from medsam_app.batch.prompts import Prompts
from medsam_app.batch.record import CaseRecord, Journal, Shard, hash_of, locked, read_shard, store_settings
from medsam_app.batch.report import write_overview, write_report
from medsam_app.batch.settings import BatchSettings, make_settings
from medsam_app.batch.worker import Worker
from medsam_app.errors import SaveError, SettingsError, unknown_name
from medsam_app.io.volume_folder import find_volumes

ENGINES = ("local", "ray")
#: Settings that are paths.
_PATHS = ("weights", "adapter", "net", "prompts", "masks")


class CaseEngine(Protocol):
    """Engine that runs cases and yields their records in order of completion."""

    def run(self, jobs: Iterable[Job]) -> Iterator[CaseRecord]:
        """Yield one record per job, taking the next job when capacity becomes free."""
        ...


@dataclass(frozen=True)
class FolderPlan:
    """Cases that a run will process.

    Attributes:
        jobs: all cases of the shard.
        todo: unfinished cases, in processing order.
        done: records of the finished cases.
        names: names of the cases of all shards.
    """

    jobs: tuple[Job, ...]
    todo: tuple[Job, ...]
    done: tuple[CaseRecord, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class FolderResult:
    """Result of a folder run.

    Attributes:
        output: folder of the masks.
        cases: one record per case, by name, including cases finished by earlier runs.
        made: names of the cases that this run processed, successfully or not.
        stopped: whether the run was stopped before its end.
    """

    output: Path
    cases: tuple[CaseRecord, ...]
    made: tuple[str, ...]
    stopped: bool = False

    def having(self, outcome: str) -> list[CaseRecord]:
        """Return the cases with an outcome: "done", "failed" or "skipped"."""
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
    """Segment every volume under a folder into an output folder of the same structure.

    Args:
        folder: folder of NIfTI, NRRD, MetaImage and DICOM images, at any depth.
        output: folder of the masks, created if it does not exist.
        device: as for `VolumePredictor`.
        engine: 'local', or 'ray' for several processes or machines.
        workers: number of Ray workers, each with its own model; None for one per GPU, or one per two cores.
        ray_address: address of a Ray cluster; None for a local one that ends with the run.
        shard: 'NUMBER/COUNT', such as '2/8', for one part of the cases.
        overwrite: whether to replace existing files, including results with other settings.
        watch: called after each case with its record, the number of finished cases and the number of all
            cases.
        stopped: called before each case; returns whether to stop.
        settings: fields of `BatchSettings`: model, weights, adapter, prompts, masks, automatic, ...

    Raises:
        MedsamError: the whole run is impossible; errors of a single case are in its record.
        DiskFull: the disk is full; the same call resumes the run.
    """
    folder, output = _absolute(folder), _absolute(output)
    if engine not in ENGINES:
        raise SettingsError(unknown_name("engine", engine, ENGINES))
    batch_settings, part = make_settings(settings), read_shard(shard)
    with locked(output, part):
        identity = batch_settings.identity()
        digest = store_settings(output, identity, overwrite=overwrite)
        journal = Journal(output, part, digest)
        plan = plan_folder(folder, output, batch_settings, part, journal, overwrite=overwrite)
        records = {record.case: record for record in plan.done}
        processed: list[str] = []
        options = {"input": str(folder), "engine": engine, "workers": workers, "device": device}
        options |= {name: str(path) for name in _PATHS if (path := getattr(batch_settings, name)) is not None}
        report = partial(
            write_report, output, shard=part, identity=identity, options=options, began=datetime.now(UTC)
        )
        report(list(records.values()), finished=False)

        def next_jobs() -> Iterator[Job]:
            for job in plan.todo:
                if stopped():
                    return
                journal.begin(job.case)
                yield job

        def add_record(record: CaseRecord) -> None:
            previous = journal.records.get(record.case)
            journal.end(record)
            if previous is not None:
                _remove_stale_files(output, previous, record)
            records[record.case] = record
            if watch is not None:
                watch(record, len(records), len(plan.jobs))

        for job in (job for job in plan.todo if job.source.problem or job.prompts.missing):
            outcome = "failed" if job.source.problem else "skipped"
            why = job.source.problem or f"Nothing says where anything is: {job.prompts.missing}."
            add_record(job.record(outcome=outcome, message=why))
        plan = replace(plan, todo=tuple(job for job in plan.todo if job.case not in records))
        try:
            if plan.todo:
                for record in _engine(engine, batch_settings, output, device, workers, ray_address).run(
                    next_jobs()
                ):
                    processed.append(record.case)
                    add_record(record)
        finally:
            cases = tuple(records[job.case] for job in plan.jobs if job.case in records)
            with suppress(SaveError):  # keep the error that ended the run, which is more specific
                report(cases, finished=len(cases) == len(plan.jobs))
                all_records = Journal(output, part, digest).records  # includes the other shards
                write_overview(output, [all_records[name] for name in plan.names if name in all_records])
        return FolderResult(output, cases, tuple(processed), stopped=len(cases) < len(plan.jobs))


def preview_folder(
    folder: str | Path, output: str | Path, *, shard: str | None = None, **settings: Any
) -> FolderPlan:
    """Return the plan of `segment_folder` without writing anything.

    Raises:
        MedsamError: as `segment_folder`, except for errors that only a run can detect.
    """
    folder, output = _absolute(folder), _absolute(output)
    batch_settings, part = make_settings(settings), read_shard(shard)
    journal = Journal(output, part, hash_of(batch_settings.identity()))
    return plan_folder(folder, output, batch_settings, part, journal, overwrite=True)


def _absolute(path: str | Path) -> Path:
    """Return an absolute path, which is valid for other processes as well."""
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
    """Return the cases of a shard and the jobs to run.

    Raises:
        MedsamError: no volumes, unreadable prompts, or existing files of another origin.
    """
    if output.resolve() == folder.resolve():
        raise SaveError(f"The masks would lie among the images in {folder}; give another output folder.")
    prompt_paths = [path for path in (settings.prompts, settings.masks) if path is not None]
    volumes = find_volumes(folder, leave_out=[output, *prompt_paths])
    case_prompts = Prompts(folder, settings).of(volumes)
    if all(prompts.missing for prompts in case_prompts):
        raise SettingsError(
            f"Nothing says where the objects are: for '{volumes[0].case}', {case_prompts[0].missing}; give "
            "prompts or masks, or an adapter that was taught labels and 'automatic'."
        )
    jobs = []
    for volume, prompts in zip(volumes, case_prompts, strict=True):
        if zlib.crc32(volume.case.encode("utf-8", "surrogateescape")) % shard.count == shard.number - 1:
            ending = ending_for(volume.path, settings.format)
            outputs = output / (volume.case if settings.separate else volume.case + ending)
            key = _key(volume.path, *prompts.files) + _digest(repr(prompts.rows))
            jobs.append(Job(volume, prompts, outputs, ending, journal.settings, key))
    done = {
        job.case: record for job in jobs if (record := _reusable_record(job, journal, output)) is not None
    }
    todo = [job for job in jobs if job.case not in done]
    in_the_way = [job.outputs for job in todo if job.case not in journal.owned and job.outputs.exists()]
    if in_the_way and not overwrite:
        more = f" and {len(in_the_way) - 1} more" if len(in_the_way) > 1 else ""
        raise SaveError(
            f"{in_the_way[0]}{more} exist already and are not of a run in this folder; give another output "
            "folder, or --overwrite to replace them."
        )
    # Cases in progress when an earlier run ended come last: if one of them caused the end, the others
    # finish first.
    todo.sort(key=lambda job: job.case in journal.begun)
    return FolderPlan(
        tuple(jobs), tuple(todo), tuple(done.values()), tuple(volume.case for volume in volumes)
    )


def _reusable_record(job: Job, journal: Journal, output: Path) -> CaseRecord | None:
    """Return the record of a case finished from the same files with its outputs in place, else None."""
    record = journal.records.get(job.case)
    if record is None or record.outcome != "done" or record.key != job.key or not record.outputs:
        return None
    for output_record in record.outputs:
        path = output / output_record.path
        if not path.is_file() or path.stat().st_size != output_record.bytes:
            return None
    return record


def _remove_stale_files(output: Path, old: CaseRecord, new: CaseRecord) -> None:
    """Remove files of a case that an earlier run wrote and the new run did not."""
    new_paths = {output_record.path for output_record in new.outputs}
    for output_record in old.outputs:
        if output_record.path not in new_paths:
            (output / output_record.path).unlink(missing_ok=True)


def _key(*paths: Path) -> str:
    """Return a hash of files by name, size and time; for a folder, of all files in it."""
    lines = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                stat = file.stat()
                lines.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
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
    """Engine in this process: while one case uses the model, others are read and written."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def run(self, jobs: Iterable[Job]) -> Iterator[CaseRecord]:
        """Yield records; raise `DiskFull` after the cases in progress have ended."""
        pending: set[Future[CaseRecord]] = set()
        with ThreadPoolExecutor(CONCURRENT_CASES, thread_name_prefix="case") as pool:
            for job in jobs:
                pending.add(pool.submit(self.worker.run, job))
                if len(pending) == CONCURRENT_CASES:
                    completed, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in completed)
            for future in pending:
                yield future.result()
