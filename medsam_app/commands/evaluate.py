"""What `medsam-app evaluate` does: measure with a bar, print tables, write files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.console import check_target, note, say, step, table_console, titled_table, watched
from medsam_app.errors import SaveError, SettingsError
from medsam_app.evaluate.files import write_json, write_scores
from medsam_app.evaluate.tables import Sheet, remarks, sheets

if TYPE_CHECKING:  # heavy
    from medsam_app.datasets.gathering import Dataset
    from medsam_app.evaluate.run import Skipped


def evaluate(
    path: Path,
    *,
    clicks: str,
    csv_file: Path | None,
    json_file: Path | None,
    report_file: Path | None,
    overwrite: bool,
    **asked: Any,
) -> int:
    """Measure, print, write.

    Args:
        path: folder or list of labelled volumes.
        clicks: a number, or several with commas between them.
        csv_file: gets every score.
        json_file: gets the summaries.
        report_file: gets a page with tables, curves and pictures.
        overwrite: replace these where they exist.
        asked: of `evaluate_folder`.

    Returns:
        how many cases could not be measured.
    """
    numbers = _clicks(clicks)
    with step("Loading"):
        from medsam_app.datasets.find import find_cases

        dataset = find_cases(path)
        files = {"--csv": csv_file, "--json": json_file, "--report": report_file}
        _check_targets(dataset, files, overwrite=overwrite)
        if report_file is not None:
            from medsam_app.evaluate.plots import check_matplotlib

            check_matplotlib()
        from medsam_app.evaluate.gallery import Gallery
        from medsam_app.evaluate.run import evaluate_folder

    gallery = None if report_file is None else Gallery()
    with watched("Loading the model") as (progress, tell):

        def skip(case: Skipped) -> None:
            tell(f"Skipped {case.dataset}, {case.case}: {case.error}")

        found = evaluate_folder(
            dataset, clicks=numbers, progress=progress, tell=tell, skip=skip, gallery=gallery, **asked
        )
    # Files first: a pipe that closes early must not cost the measurement.
    if csv_file is not None:
        write_scores(found.scores, csv_file)
    if json_file is not None:
        write_json(found, json_file)
    if report_file is not None and gallery is not None:
        with step("Drawing the report"):
            from medsam_app.evaluate.report import write_report

            write_report(found, report_file, gallery=gallery)
    console = table_console()
    for sheet in sheets(found):
        print_sheet(sheet, console)
    for remark in remarks(found):
        say(remark)
    for file in filter(None, files.values()):
        say(f"Saved {file}.")
    if found.skipped:
        note(f"Skipped because they could not be read: {len(found.skipped)} of the cases.")
    return len(found.skipped)


def _clicks(text: str) -> int | tuple[int, ...]:
    """'10' or '1,3,5'."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--clicks takes a number such as 10, or several such as 1,3,5,10; got '{text}'."
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _check_targets(dataset: Dataset, files: dict[str, Path | None], *, overwrite: bool) -> None:
    """Refuse outputs that could not or should not be written, before hours of work."""
    volumes = [file for case in dataset.cases for file in (case.image, case.label, *case.channels)]
    report = files["--report"]
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise SaveError(f"The report is a page and cannot be named {report.name}; end its name in .html.")
    named: dict[Path, str] = {}
    for option, target in files.items():
        if target is None:
            continue
        check_target(target, sources=[*dataset.sources, *volumes], overwrite=overwrite)
        other = named.setdefault(target.resolve(), option)
        if other != option:
            raise SaveError(f"{other} and {option} both name {files[other]}; give two names.")


def print_sheet(sheet: Sheet, console: Any) -> None:
    """Print a table."""
    table = titled_table(sheet.title)
    for number, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if number < sheet.text else "right")
    for rows in sheet.sections:
        if any(len(each) > 1 for each in sheet.sections):
            table.add_section()
        for row in rows:
            table.add_row(*row)
    console.print(table)
