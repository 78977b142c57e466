"""What `medsam-app evaluate` does: measure with a bar, print tables, write files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from medsam_app.cases import MANIFEST
from medsam_app.commands import note, say, step
from medsam_app.errors import SaveError
from medsam_app.evaluation_files import write_json, write_scores
from medsam_app.reporting import check_target, table_console, titled_table, watched
from medsam_app.scores import MIN_VOXELS
from medsam_app.summary import SPOILT, Group, Mean, Summary

if TYPE_CHECKING:  # heavy
    from medsam_app.evaluate import Evaluation, Skipped


def evaluate(
    folder: Path, *, csv_file: Path | None, json_file: Path | None, overwrite: bool, **asked: Any
) -> int:
    """Measure, print, write.

    Args:
        folder: has a `manifest.json`.
        csv_file: gets every score.
        json_file: gets the summaries.
        overwrite: replace these where they exist.
        asked: of `evaluate_folder`.

    Returns:
        how many cases could not be read.
    """
    _check_targets(folder, csv_file, json_file, overwrite=overwrite)
    with step("Loading"):
        from medsam_app.evaluate import evaluate_folder

    with watched("Loading the model") as (progress, tell):

        def skip(case: Skipped) -> None:
            tell(f"Skipped {case.dataset}, {case.case}: {case.error}")

        found = evaluate_folder(folder, progress=progress, skip=skip, **asked)
    # Files first: a pipe that closes early must not cost the measurement.
    if csv_file is not None:
        write_scores(found.scores, csv_file)
    if json_file is not None:
        write_json(found, json_file)
    _print(found)
    for file in filter(None, (csv_file, json_file)):
        say(f"Saved {file}.")
    if found.skipped:
        note(f"Skipped because they could not be read: {len(found.skipped)} of the cases.")
    return len(found.skipped)


def _check_targets(folder: Path, *files: Path | None, overwrite: bool) -> None:
    """Refuse outputs that could not or should not be written, before hours of work."""
    targets = [file for file in files if file is not None]
    for target in targets:
        check_target(target, sources=[folder / MANIFEST], overwrite=overwrite)
    if len({target.resolve() for target in targets}) < len(targets):
        raise SaveError(f"--csv and --json both name {targets[0]}; give two names.")


def _print(found: Evaluation) -> None:
    console = table_console()
    for kind, title in (("dataset", "dataset"), ("modality", "modality"), ("size", "size of the object")):
        console.print(_dice_table(found, kind, title))
    console.print(_method_table(found))
    objects = _of(found.summaries[0].groups, "objects").objects
    say(
        f"{objects} objects; {found.small} under {MIN_VOXELS} voxels were left out. "
        "In brackets: 95 % intervals, from resampled objects."
    )
    if found.clicks > 1:
        for summary in found.summaries:
            say(_harm(summary))


def _dice_table(found: Evaluation, kind: str, title: str) -> Table:
    """Mean Dice after some clicks of each group, all methods one below the other, and of all objects."""
    table = titled_table(f"Mean Dice by {title}")
    for column in (kind, "method", "objects"):
        table.add_column(column, justify="right" if column == "objects" else "left")
    first = found.summaries[0].groups
    shown = list(_of(first, "objects").dice)
    for n in shown:
        table.add_column(_count(n, found.first), justify="right")
    wanted = [group for group in first if group.kind in (kind, "objects")]
    wanted += [group for group in first if group.kind == "datasets" and kind == "dataset"]
    for group in wanted:
        if len(found.summaries) > 1:
            table.add_section()
        for number, summary in enumerate(found.summaries):
            own = _of(summary.groups, group.kind, group.name)
            cells = [_interval(own.dice[n]) for n in shown]
            name, objects = (own.name, str(own.objects)) if number == 0 else ("", "")
            table.add_row(name, summary.method, objects, *cells)
    return table


def _method_table(found: Evaluation) -> Table:
    table = titled_table("Clicks")
    table.add_column("method")
    for reach in found.summaries[0].reach:
        table.add_column(f"to Dice {reach.target:.2f}", justify="right")
        table.add_column("never", justify="right")
    table.add_column("all clicks honoured", justify="right")
    table.add_column("seconds a click", justify="right")
    for summary in found.summaries:
        cells = []
        for reach in summary.reach:
            cells += [_interval(reach.clicks, 1), f"{100 * reach.never:.1f} %"]
        honoured = f"{100 * summary.honoured:.1f} %"
        table.add_row(summary.method, *cells, honoured, f"{summary.seconds:.2f}")
    return table


def _harm(summary: Summary) -> str:
    """Where clicks made masks worse, in a sentence."""
    steps = summary.clicks - 1
    text = (
        f"{summary.method}: {summary.worse} of {steps} further clicks lowered the mean over all objects; "
        f"{summary.spoilt} objects end {SPOILT} or more below their own best"
    )
    if summary.worst is None:
        return f"{text}."
    worst = summary.worst
    return (
        f"{text}, most of all {worst.label} of {worst.dataset}, {worst.case}: "
        f"{worst.best:.3f}, then {worst.last:.3f}."
    )


def _of(groups: tuple[Group, ...], kind: str, name: str | None = None) -> Group:
    return next(group for group in groups if group.kind == kind and name in (None, group.name))


def _count(n: int, first: str) -> str:
    """What was given after n prompts."""
    if first == "click":
        return f"{n} click{'s' if n > 1 else ''}"
    return "box" if n == 1 else f"box + {n - 1} click{'s' if n > 2 else ''}"


def _interval(mean: Mean, digits: int = 3) -> str:
    """'0.705 (0.68-0.73)', which may be wrapped between the two; of one object the value alone."""
    text = f"{mean.value:.{digits}f}"
    narrow = max(1, digits - 1)
    return text if mean.low == mean.high else f"{text} ({mean.low:.{narrow}f}-{mean.high:.{narrow}f})"
