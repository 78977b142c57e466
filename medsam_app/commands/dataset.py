"""`medsam-app dataset inspect`: check every case, print tables, write a JSON file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medsam_app._version import __version__
from medsam_app.atomic import save_whole
from medsam_app.console import check_target, note, progress_bar, say, table_console, titled_table
from medsam_app.datasets.find import Dataset, Problem, find_cases
from medsam_app.datasets.fingerprint import Fingerprint, Spread, fingerprint
from medsam_app.datasets.label_census import PERCENTILES

#: Maximum number of printed warnings of one kind; the JSON file has all of them.
_WARNINGS = 10


def inspect(path: Path, *, json_file: Path | None, overwrite: bool) -> int:
    """Read a dataset, print its fingerprint and problems, and write them to a file.

    Args:
        path: folder or list.
        json_file: output file for the complete fingerprint.
        overwrite: whether to replace an existing file.

    Returns:
        Number of cases that cannot be used.
    """
    dataset = find_cases(path)
    if json_file is not None:
        check_target(json_file, sources=_sources(dataset), overwrite=overwrite)
    count = len(dataset.cases)
    note(f"Reading {count} case{'' if count == 1 else 's'}: {dataset.layout}")
    with progress_bar("Reading") as (progress, _):
        report = fingerprint(dataset, progress=progress)
    # Write the file first: a pipe that closes early must not lose the result.
    if json_file is not None:
        document = {"medsam_app": __version__} | asdict(report)
        save_whole(json_file, json.dumps(document, indent=1, allow_nan=False) + "\n")
    _print(report)
    if json_file is not None:
        say(f"Saved {json_file}.")
    if report.unusable:
        note(f"Cases that cannot be used: {report.unusable}.")
    return report.unusable


def _sources(dataset: Dataset) -> list[Path]:
    """Return all input files of a dataset."""
    volumes = [file for case in dataset.cases for file in (case.image, case.label, *case.channels)]
    return [*dataset.sources, *volumes]


def _print(report: Fingerprint) -> None:
    console = table_console()
    console.print(_overview(report))
    if report.shape is not None and report.spacing is not None:
        console.print(_grids(report.shape, report.spacing))
    if report.intensities:
        console.print(_intensities(report))
    if report.labels:
        console.print(_labels(report))
    _print_problems(console, report.problems)


def _overview(report: Fingerprint) -> Table:
    table = titled_table("Dataset")
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("path", report.path)
    table.add_row("layout", report.layout)
    unusable = f", {report.unusable} cannot be used" if report.unusable else ""
    table.add_row("cases", f"{report.usable} usable{unusable}")
    for title, counts in (
        ("splits", report.splits),
        ("modalities", report.modalities),
        ("orientations", report.orientations),
    ):
        table.add_row(title, ", ".join(f"{name} {count}" for name, count in counts.items()) or "not said")
    return table


def _grids(shape: Spread, spacing: Spread) -> Table:
    table = titled_table("Grids, along the axes (i, j, k) of each file")
    for column in ("", "min", "median", "max"):
        table.add_column(column, justify="right" if column else "left")
    for title, spread, style in (("voxels", shape, ".0f"), ("spacing in mm", spacing, ".2f")):
        cells = [" x ".join(format(n, style) for n in row) for row in (spread.min, spread.median, spread.max)]
        table.add_row(title, *cells)
    return table


def _intensities(report: Fingerprint) -> Table:
    table = titled_table("Intensities, percentiles over the cases of a modality")
    for column in ("modality", "cases", ""):
        table.add_column(column, justify="right" if column == "cases" else "left")
    for per_cent in PERCENTILES:
        table.add_column(f"{per_cent:g} %", justify="right")
    for intensities in report.intensities:
        leading = (intensities.modality or "not said", str(intensities.cases))
        for title, values in (("whole volume", intensities.whole), ("inside labels", intensities.inside)):
            if values is not None:
                table.add_row(*leading, title, *(f"{values[per_cent]:.6g}" for per_cent in PERCENTILES))
                leading = ("", "")
    return table


def _labels(report: Fingerprint) -> Table:
    table = titled_table("Labels")
    several = len({label.dataset for label in report.labels}) > 1
    for column in (
        *(["dataset"] if several else []),
        "value",
        "name",
        "cases",
        "voxels",
        "ml: min",
        "median",
        "max",
    ):
        table.add_column(column, justify="left" if column in ("dataset", "name") else "right")
    previous = None
    for label in report.labels:
        name = [label.dataset if label.dataset != previous else ""] if several else []
        previous = label.dataset
        volumes = (f"{ml:.4g}" for ml in (label.ml_min, label.ml_median, label.ml_max))
        table.add_row(
            *name, str(label.value), label.name or "-", str(label.cases), str(label.voxels), *volumes
        )
    return table


def _print_problems(console: Console, problems: tuple[Problem, ...]) -> None:
    """Print all errors, and the first warnings of each kind."""
    if not problems:
        say("No problems were found.")
        return
    table = titled_table("Problems")
    for column in ("", "kind", "case"):
        table.add_column(column, overflow="fold")
    table.add_column("what to do about it", overflow="fold", ratio=1)
    several = len({problem.dataset for problem in problems}) > 1
    shown: Counter[str] = Counter()
    for problem in problems:
        shown[problem.kind] += 1
        if problem.severity == "error" or shown[problem.kind] <= _WARNINGS:
            place = [problem.dataset] if several or not problem.case else []
            place += [problem.case] if problem.case else []
            table.add_row(problem.severity, problem.kind, ", ".join(place), problem.message)
    console.print(table)
    severities = Counter(problem.severity for problem in problems)
    hidden = len(problems) - table.row_count
    more = f"; {hidden} more warnings like these are in the file of --json" if hidden else ""
    errors, warnings = (
        f"{severities[name]} {name}{'' if severities[name] == 1 else 's'}" for name in ("error", "warning")
    )
    say(f"{errors} (the case cannot be used), {warnings}{more}.")
