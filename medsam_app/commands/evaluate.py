"""`medsam-app evaluate`: measure, print tables, write files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.console import check_target, note, progress_bar, say, step, table_console, titled_table
from medsam_app.errors import SaveError
from medsam_app.evaluate.files import write_json, write_scores
from medsam_app.evaluate.options import EvaluateOptions
from medsam_app.evaluate.tables import Sheet, remarks, sheets

if TYPE_CHECKING:  # heavy
    from medsam_app.datasets.gathering import Dataset
    from medsam_app.evaluate.run import Skipped


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """Files that an evaluation writes.

    Attributes:
        csv: one row per score.
        json: the summaries.
        report: a page with tables, curves and pictures.
        overwrite: whether to replace existing files.
    """

    csv: Path | None = None
    json: Path | None = None
    report: Path | None = None
    overwrite: bool = False

    def named(self) -> dict[str, Path]:
        """Return the files by command-line option."""
        files = {"--csv": self.csv, "--json": self.json, "--report": self.report}
        return {option: file for option, file in files.items() if file is not None}


def evaluate(path: Path, options: EvaluateOptions, files: OutputFiles) -> int:
    """Measure, print the results and write them to files.

    Args:
        path: folder or list of labelled volumes.

    Returns:
        Number of cases that could not be measured.
    """
    with step("Loading"):
        from medsam_app.datasets.find import find_cases

        dataset = find_cases(path)
        _check_targets(dataset, files)
        if files.report is not None:
            from medsam_app.evaluate.plots import check_matplotlib

            check_matplotlib()
        from medsam_app.evaluate.gallery import Gallery
        from medsam_app.evaluate.partial import ENDING, PartialResults
        from medsam_app.evaluate.run import run_evaluation

    gallery = None if files.report is None else Gallery()
    targets = list(files.named().values())
    partial: PartialResults | None = None

    def open_partial(settings: Mapping[str, Any]) -> PartialResults:
        nonlocal partial
        path = targets[0].with_name(targets[0].name + ENDING)
        partial = PartialResults(path, settings, overwrite=files.overwrite)
        return partial

    with progress_bar("Loading the model") as (progress, tell):

        def skip(case: Skipped) -> None:
            tell(f"Skipped {case.dataset}, {case.case}: {case.error}")

        try:
            evaluation = run_evaluation(
                dataset,
                options,
                progress=progress,
                tell=tell,
                skip=skip,
                gallery=gallery,
                partial=open_partial if targets else None,
            )
        except KeyboardInterrupt:
            if partial is not None:
                tell(f"The measured cases are in {partial.path}; the same command goes on from there.")
            raise
    # Write files first: a pipe that closes early must not lose the measurement.
    if files.csv is not None:
        write_scores(evaluation.scores, files.csv)
    if files.json is not None:
        write_json(evaluation, files.json)
    if files.report is not None and gallery is not None:
        with step("Drawing the report"):
            from medsam_app.evaluate.report import write_report

            write_report(evaluation, files.report, gallery=gallery)
    if partial is not None:
        partial.remove()
    console = table_console()
    for sheet in sheets(evaluation):
        print_sheet(sheet, console)
    for remark in remarks(evaluation):
        say(remark)
    for file in files.named().values():
        say(f"Saved {file}.")
    if evaluation.skipped:
        note(f"Skipped because they could not be read: {len(evaluation.skipped)} of the cases.")
    return len(evaluation.skipped)


def _check_targets(dataset: Dataset, files: OutputFiles) -> None:
    """Reject outputs that cannot or should not be written, before hours of work."""
    volumes = [file for case in dataset.cases for file in (case.image, case.label, *case.channels)]
    if files.report is not None and files.report.suffix.lower() not in (".html", ".htm"):
        raise SaveError(
            f"The report is a page and cannot be named {files.report.name}; end its name in .html."
        )
    options: dict[Path, str] = {}
    for option, target in files.named().items():
        check_target(target, sources=[*dataset.sources, *volumes], overwrite=files.overwrite)
        first_option = options.setdefault(target.resolve(), option)
        if first_option != option:
            raise SaveError(
                f"{first_option} and {option} both name {files.named()[first_option]}; give two names."
            )


def print_sheet(sheet: Sheet, console: Any) -> None:
    """Print a table."""
    table = titled_table(sheet.title)
    for number, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if number < sheet.text else "right")
    for rows in sheet.sections:
        if any(len(section) > 1 for section in sheet.sections):
            table.add_section()
        for row in rows:
            table.add_row(*row)
    console.print(table)
