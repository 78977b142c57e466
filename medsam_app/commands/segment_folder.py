"""`medsam-app segment INPUT_FOLDER OUTPUT_FOLDER`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.console import note, progress_bar, say, step, table_console, titled_table
from medsam_app.training.processes import stopping

if TYPE_CHECKING:  # heavy
    from medsam_app.batch.record import CaseRecord
    from medsam_app.batch.run import FolderResult

#: Cases that have to be done before the time left is estimated.
_ENOUGH = 3
#: Failed cases that are listed at the end; the others are in the files.
_LISTED = 40


def segment_folder(
    folder: Path, output: Path, *, dry_run: bool, shard: str | None, settings: Mapping[str, Any], **how: Any
) -> int:
    """Segment a folder and print the result.

    Returns:
        0 where every case was done, 1 where some failed, 130 where it was stopped.

    Raises:
        MedsamError: something that concerns the whole run.
    """
    if dry_run:
        _show_plan(folder, output, shard, settings)
        return 0
    with step("Loading"):
        from medsam_app.batch import run
    clock = _Clock()
    with stopping() as stopped, progress_bar("Loading the model") as (progress, keep):

        def watch(case: CaseRecord, done: int, count: int) -> None:
            if case.outcome == "failed":
                keep(f"Failed: {case.case}: {case.message}")
            progress(f"{done} of {count} cases{clock.told(done, count, case)}", done / count)

        result = run.segment_folder(
            folder, output, shard=shard, watch=watch, stopped=stopped, **how, **settings
        )
    _show_result(result)
    if result.stopped:
        note(f"Stopped; the same command goes on from there. So far: {output}.")
        return 130
    return 1 if result.having("failed") else 0


class _Clock:
    """Estimate of the remaining time from the cases segmented by this run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.made = 0

    def told(self, done: int, count: int, case: CaseRecord) -> str:
        if not case.seconds:  # known to fail before anything was read
            return ""
        self.made += 1
        if self.made < _ENOUGH:
            return ""
        left = (time.monotonic() - self.began) / self.made * (count - done)
        return f", about {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show_plan(folder: Path, output: Path, shard: str | None, settings: Mapping[str, Any]) -> None:
    """Print the plan of a run, one line per case."""
    with step("Looking at the folders"):
        from medsam_app.batch.run import look_at_folder

        plan = look_at_folder(folder, output, shard=shard, **settings)
    table = titled_table("What would be done")
    for column in ("case", "image", "prompts from", "output", ""):
        table.add_column(column, overflow="fold")
    waiting = {job.case for job in plan.todo}
    for job in plan.jobs:
        why = job.found.problem or job.asked.missing
        state = "to do" if job.case in waiting else "done"
        if why:
            state = f"{'fails' if job.found.problem else 'skipped'}: {why}"
        record = job.record(outcome="skipped")
        image = str(job.found.path) + (f" (series {job.found.series})" if job.found.series else "")
        table.add_row(job.case, image, record.asked, str(job.outputs), state)
    table_console().print(table)
    counts = Counter("done" if job.case not in waiting else "to do" for job in plan.jobs)
    say(f"{len(plan.jobs)} cases: {counts['to do']} to do, {counts['done']} done. Nothing was written.")


def _show_result(result: FolderResult) -> None:
    """The counts, the volumes and the cases that failed."""
    names = sorted({each.name for case in result.cases for each in case.objects})
    table = titled_table("Objects")
    for column in ("object", "found in", "not found in", "median ml", "prompts", "not honoured"):
        table.add_column(column, justify="left" if column == "object" else "right")
    for name in names[:_LISTED]:
        own = [each for case in result.cases for each in case.objects if each.name == name]
        sizes = sorted(each.volume_ml for each in own if each.voxels)
        median = f"{sizes[len(sizes) // 2]:.2f}" if sizes else ""
        asked, unmet = sum(each.prompts for each in own), sum(each.unmet for each in own)
        table.add_row(name, str(len(sizes)), str(len(own) - len(sizes)), median, str(asked), str(unmet))
    if names:
        table_console().print(table)
    for outcome in ("failed", "skipped"):
        cases = result.having(outcome)
        for case in cases[:_LISTED]:
            note(f"{outcome.capitalize()}: {case.case}: {case.message}")
        if len(cases) > _LISTED:
            note(f"... and {len(cases) - _LISTED} more that {outcome}; {result.output} has all.")
    done = len(result.having("done"))
    before = done - sum(case.outcome == "done" for case in result.cases if case.case in result.made)
    earlier = f", {before} of them before" if before else ""
    say(
        f"{done} of {len(result.cases)} cases done{earlier}, {len(result.having('failed'))} failed, "
        f"{len(result.having('skipped'))} skipped. Look at {result.output / 'index.html'}."
    )
