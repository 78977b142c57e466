"""`medsam-app segment INPUT_FOLDER OUTPUT_FOLDER`: segment a folder and print the result."""

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

#: Number of finished cases before the remaining time is estimated.
_ENOUGH = 3
#: Maximum number of failed cases listed at the end; the output files have all of them.
_LISTED = 40


def segment_folder(
    folder: Path,
    output: Path,
    *,
    dry_run: bool,
    shard: str | None,
    settings: Mapping[str, Any],
    **run_options: Any,
) -> int:
    """Segment a folder and print the result.

    Returns:
        0 if every case was done, 1 if some failed, 130 if the run was stopped.

    Raises:
        MedsamError: the whole run is impossible.
    """
    if dry_run:
        _show_plan(folder, output, shard, settings)
        return 0
    with step("Loading"):
        from medsam_app.batch import run
    clock = _RemainingTime()
    with stopping() as stopped, progress_bar("Loading the model") as (progress, print_line):

        def watch(case: CaseRecord, done: int, count: int) -> None:
            if case.outcome == "failed":
                print_line(f"Failed: {case.case}: {case.message}")
            progress(f"{done} of {count} cases{clock.text(done, count, case)}", done / count)

        result = run.segment_folder(
            folder, output, shard=shard, watch=watch, stopped=stopped, **run_options, **settings
        )
    _show_result(result)
    if result.stopped:
        note(f"Stopped; the same command goes on from there. So far: {output}.")
        return 130
    return 1 if result.having("failed") else 0


class _RemainingTime:
    """Estimate of the remaining time from the cases segmented by this run."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.segmented = 0

    def text(self, done: int, count: int, case: CaseRecord) -> str:
        """Return the estimate as text after one more case, '' if there are too few cases."""
        if not case.seconds:  # failed before anything was read
            return ""
        self.segmented += 1
        if self.segmented < _ENOUGH:
            return ""
        remaining = (time.monotonic() - self.start) / self.segmented * (count - done)
        return f", about {_duration(remaining)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _show_plan(folder: Path, output: Path, shard: str | None, settings: Mapping[str, Any]) -> None:
    """Print the plan of a run, one line per case."""
    with step("Looking at the folders"):
        from medsam_app.batch.run import preview_folder

        plan = preview_folder(folder, output, shard=shard, **settings)
    table = titled_table("What would be done")
    for column in ("case", "image", "prompts from", "output", ""):
        table.add_column(column, overflow="fold")
    waiting = {job.case for job in plan.todo}
    for job in plan.jobs:
        problem = job.source.problem or job.prompts.missing
        state = "to do" if job.case in waiting else "done"
        if problem:
            state = f"{'fails' if job.source.problem else 'skipped'}: {problem}"
        record = job.record(outcome="skipped")
        image = str(job.source.path) + (f" (series {job.source.series})" if job.source.series else "")
        table.add_row(job.case, image, record.asked, str(job.outputs), state)
    table_console().print(table)
    counts = Counter("done" if job.case not in waiting else "to do" for job in plan.jobs)
    say(f"{len(plan.jobs)} cases: {counts['to do']} to do, {counts['done']} done. Nothing was written.")


def _show_result(result: FolderResult) -> None:
    """Print the counts, the volumes and the failed cases."""
    names = sorted({record.name for case in result.cases for record in case.objects})
    table = titled_table("Objects")
    for column in ("object", "found in", "not found in", "median ml", "prompts", "not honoured"):
        table.add_column(column, justify="left" if column == "object" else "right")
    for name in names[:_LISTED]:
        records = [record for case in result.cases for record in case.objects if record.name == name]
        sizes = sorted(record.volume_ml for record in records if record.voxels)
        median = f"{sizes[len(sizes) // 2]:.2f}" if sizes else ""
        prompts, unmet = sum(record.prompts for record in records), sum(record.unmet for record in records)
        table.add_row(name, str(len(sizes)), str(len(records) - len(sizes)), median, str(prompts), str(unmet))
    if names:
        table_console().print(table)
    for outcome in ("failed", "skipped"):
        cases = result.having(outcome)
        for case in cases[:_LISTED]:
            note(f"{outcome.capitalize()}: {case.case}: {case.message}")
        if len(cases) > _LISTED:
            note(f"... and {len(cases) - _LISTED} more that {outcome}; {result.output} has all.")
    done = len(result.having("done"))
    earlier_count = done - sum(case.outcome == "done" for case in result.cases if case.case in result.made)
    earlier = f", {earlier_count} of them before" if earlier_count else ""
    say(
        f"{done} of {len(result.cases)} cases done{earlier}, {len(result.having('failed'))} failed, "
        f"{len(result.having('skipped'))} skipped. Look at {result.output / 'index.html'}."
    )
