"""Report of a fine-tuning run: the product on held-out cases with and without the adapter."""

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

#: Clicks on each object, and after which of them means are given.
CLICKS = (1, 3, 5)
#: Cases of a dataset that are measured at most: a look, not a study.
MOST_CASES = 12
#: In the folder of a run: what was measured.
SCORES = "scores.json"


def tell_gain(
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
    """Measure, print, write the scores into the run's folder and the adapter's card, and draw a page.

    Args:
        adapter: its file.
        out: folder of the run.
        plan: of the run.
        dataset: whose cases they are.
        measured: cases that were never trained on.
        nets: files of networks that are measured too.

    Raises:
        MedsamError: something cannot be read or written.
    """
    gallery = Gallery()
    with progress_bar("Measuring") as (progress, _):
        found = evaluate_folder(
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
            seed=plan.seed,
            progress=progress,
            gallery=gallery,
        )
    write_json(found, out / SCORES)
    _into_card(adapter, plan, found, weights)
    console = table_console()
    for sheet in sheets(found):
        print_sheet(sheet, console)
    for remark in remarks(found):
        say(remark)
    _page(adapter.with_suffix(".html"), out, found, gallery)


def _into_card(path: Path, plan: Plan, found: Evaluation, weights: Path | None) -> None:
    """Add the means by method and click to the card in the adapter's file."""
    dice: dict[str, Any] = {}
    for summary in found.summaries:
        group = summary.group("objects")
        means = {} if group is None else group.dice
        dice[summary.method] = {str(n): mean.value and round(mean.value, 4) for n, mean in means.items()}
    cases = len({(score.dataset, score.case) for score in found.scores})
    adapter = Adapter.load(path, cast(nn.Module, load_model(plan.base, weights=weights)))
    training = adapter.card.training | {"held_out": {"cases": cases, "dice_by_clicks": dice}}
    adapter.save(path, adapter.card.model_copy(update={"training": training}))


def _page(path: Path, out: Path, found: Evaluation, gallery: Gallery) -> None:
    """The report with the run's curves; a word where it cannot be drawn."""
    if find_spec("matplotlib") is None:
        note("No page was drawn, for want of matplotlib: pip install matplotlib.")
        return
    from medsam_app.evaluate.plots import training
    from medsam_app.evaluate.report import write_report

    losses, measured = (_rows(out / name) for name in (LOG, MEASUREMENTS))
    figures = []
    if losses and measured:
        shows = "Loss by step, and Dice on windows around held-out objects by number of clicks."
        figures.append(("Training", training(losses, measured), shows))
    write_report(found, path, gallery=gallery, figures=figures)
    say(f"Saved {path}.")


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
