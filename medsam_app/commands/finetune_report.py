"""Report of a fine-tuning run: held-out cases with and without the adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from torch import nn

from medsam_app.adapters.adapter import Adapter
from medsam_app.commands.evaluate import print_sheet
from medsam_app.console import note, progress_bar, say, table_console
from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import Dataset
from medsam_app.evaluate.files import write_json
from medsam_app.evaluate.gallery import Gallery
from medsam_app.evaluate.run import Evaluation, evaluate_folder
from medsam_app.evaluate.tables import remarks, sheets
from medsam_app.finetuning.plan import Plan
from medsam_app.models.load import load_model
from medsam_app.training.loop import LOG, MEASUREMENTS

#: Numbers of clicks after which means are given; the largest is the number of clicks per object.
CLICKS = (1, 3, 5)
#: Maximum number of measured cases per dataset; enough for an impression, not for a study.
MOST_CASES = 12
#: In the folder of a run: the measured scores.
SCORES = "scores.json"


def report_gain(
    adapter: Path,
    out: Path,
    plan: Plan,
    dataset: Dataset,
    measured: Sequence[Case],
    *,
    weights: Path | None,
    nets: Sequence[Path],
    device: str,
) -> None:
    """Measure the benefit of an adapter and report it.

    The scores are printed, written into the run's folder and the adapter's card, and drawn as a page.

    Args:
        adapter: file of the adapter.
        out: folder of the run.
        plan: plan of the run.
        dataset: dataset of the cases.
        measured: held-out cases, never used for training.
        weights: weights of the base model, None for the published ones.
        nets: network files to measure as well.
        device: 'auto' or a torch device.

    Raises:
        MedsamError: a file cannot be read or written.
    """
    gallery = Gallery()
    with progress_bar("Measuring") as (progress, _):
        evaluation = evaluate_folder(
            replace(dataset, cases=tuple(measured), problems=()),
            labels=[str(value) for value in plan.labels],
            clicks=CLICKS,
            model=plan.base,
            weights=weights,
            adapter=adapter,
            base=True,
            nets=nets,
            device=device,
            most_cases=MOST_CASES,
            refine=False,  # measure windows as they were trained
            seed=plan.seed,
            progress=progress,
            gallery=gallery,
        )
    write_json(evaluation, out / SCORES)
    _update_card(adapter, plan, evaluation, weights)
    console = table_console()
    for sheet in sheets(evaluation):
        print_sheet(sheet, console)
    for remark in remarks(evaluation):
        say(remark)
    _write_page(adapter.with_suffix(".html"), out, evaluation, gallery)


def _update_card(path: Path, plan: Plan, evaluation: Evaluation, weights: Path | None) -> None:
    """Add the mean Dice by method and click to the card in the adapter's file."""
    dice: dict[str, Any] = {}
    for summary in evaluation.summaries:
        group = summary.group("objects")
        means = {} if group is None else group.dice
        dice[summary.method] = {str(n): mean.value and round(mean.value, 4) for n, mean in means.items()}
    cases = len({(score.dataset, score.case) for score in evaluation.scores})
    adapter = Adapter.load(path, cast(nn.Module, load_model(plan.base, weights=weights)))
    training = adapter.card.training | {"held_out": {"cases": cases, "dice_by_clicks": dice}}
    adapter.save(path, adapter.card.model_copy(update={"training": training}))


def _write_page(path: Path, out: Path, evaluation: Evaluation, gallery: Gallery) -> None:
    """Write the report with the run's curves, or print a note if matplotlib is missing."""
    if find_spec("matplotlib") is None:
        note("No page was drawn, for want of matplotlib: pip install matplotlib.")
        return
    from medsam_app.evaluate.plots import training
    from medsam_app.evaluate.report import write_report

    losses, measured = (_rows(out / name) for name in (LOG, MEASUREMENTS))
    figures = []
    if losses and measured:
        description = "Loss by step, and Dice on windows around held-out objects by number of clicks."
        figures.append(("Training", training(losses, measured), description))
    write_report(evaluation, path, gallery=gallery, figures=figures)
    say(f"Saved {path}.")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
