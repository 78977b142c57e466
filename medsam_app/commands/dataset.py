"""`medsam-app dataset inspect`: check every case, print tables, write a file."""

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

#: This many warnings of a kind are printed; the file has all.
_WARNINGS = 10


def inspect(path: Path, *, json_file: Path | None, overwrite: bool) -> int:
    """Read, print, write.

    Args:
        path: folder or list.
        json_file: gets everything.
        overwrite: replace it where it exists.

    Returns:
        how many cases cannot be used.
    """
    dataset = find_cases(path)
    if json_file is not None:
        check_target(json_file, sources=_sources(dataset), overwrite=overwrite)
    count = len(dataset.cases)
    note(f"Reading {count} case{'' if count == 1 else 's'}: {dataset.layout}")
    with progress_bar("Reading") as (progress, _):
        found = fingerprint(dataset, progress=progress)
    # The file first: a pipe that closes early must not cost the reading.
    if json_file is not None:
        whole = {"medsam_app": __version__} | asdict(found)
        save_whole(json_file, json.dumps(whole, indent=1, allow_nan=False) + "\n")
    _print(found)
    if json_file is not None:
        say(f"Saved {json_file}.")
    if found.unusable:
        note(f"Cases that cannot be used: {found.unusable}.")
    return found.unusable


def _sources(dataset: Dataset) -> list[Path]:
    """Return all input files of a run."""
    volumes = [file for case in dataset.cases for file in (case.image, case.label, *case.channels)]
    return [*dataset.sources, *volumes]


def _print(found: Fingerprint) -> None:
    console = table_console()
    console.print(_overview(found))
    if found.shape is not None and found.spacing is not None:
        console.print(_grids(found.shape, found.spacing))
    if found.intensities:
        console.print(_intensities(found))
    if found.labels:
        console.print(_labels(found))
    _print_problems(console, found.problems)


def _overview(found: Fingerprint) -> Table:
    table = titled_table("Dataset")
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("path", found.path)
    table.add_row("layout", found.layout)
    unusable = f", {found.unusable} cannot be used" if found.unusable else ""
    table.add_row("cases", f"{found.usable} usable{unusable}")
    for title, counts in (
        ("splits", found.splits),
        ("modalities", found.modalities),
        ("orientations", found.orientations),
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


def _intensities(found: Fingerprint) -> Table:
    table = titled_table("Intensities, percentiles over the cases of a modality")
    for column in ("modality", "cases", ""):
        table.add_column(column, justify="right" if column == "cases" else "left")
    for per_cent in PERCENTILES:
        table.add_column(f"{per_cent:g} %", justify="right")
    for each in found.intensities:
        about = (each.modality or "not said", str(each.cases))
        for title, values in (("whole volume", each.whole), ("inside labels", each.inside)):
            if values is not None:
                table.add_row(*about, title, *(f"{values[per_cent]:.6g}" for per_cent in PERCENTILES))
                about = ("", "")
    return table


def _labels(found: Fingerprint) -> Table:
    table = titled_table("Labels")
    several = len({label.dataset for label in found.labels}) > 1
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
    before = None
    for label in found.labels:
        name = [label.dataset if label.dataset != before else ""] if several else []
        before = label.dataset
        volumes = (f"{ml:.4g}" for ml in (label.ml_min, label.ml_median, label.ml_max))
        table.add_row(
            *name, str(label.value), label.name or "-", str(label.cases), str(label.voxels), *volumes
        )
    return table


def _print_problems(console: Console, problems: tuple[Problem, ...]) -> None:
    """All errors, and of each kind of warning the first ones."""
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
            about = [problem.dataset] if several or not problem.case else []
            about += [problem.case] if problem.case else []
            table.add_row(problem.severity, problem.kind, ", ".join(about), problem.message)
    console.print(table)
    severities = Counter(problem.severity for problem in problems)
    hidden = len(problems) - table.row_count
    more = f"; {hidden} more warnings like these are in the file of --json" if hidden else ""
    errors, warnings = (
        f"{severities[name]} {name}{'' if severities[name] == 1 else 's'}" for name in ("error", "warning")
    )
    say(f"{errors} (the case cannot be used), {warnings}{more}.")
