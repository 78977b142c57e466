"""Options of `medsam-app evaluate`, implemented in `medsam_app.commands.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsam_app.cli.options import AdapterOption, DeviceOption, ModelOption, WeightsOption
from medsam_app.errors import SettingsError
from medsam_app.models.table import DEFAULT_MODEL


def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="Labelled volumes: a folder, or a .csv or .json list, that 'medsam-app dataset inspect' "
            "understands.",
            show_default=False,
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Which cases; 'dev' by default where there is such a split, otherwise all. 'all' for all.",
            show_default=False,
        ),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="NAME", help="Cases of this dataset alone; repeatable."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME|VALUE", help="This label alone; repeatable."),
    ] = None,
    clicks: Annotated[
        str,
        typer.Option(
            metavar="N[,N...]",
            help="Clicks on each object; of several numbers the largest, and means are given after each.",
        ),
    ] = "10",
    targets: Annotated[
        list[float] | None,
        typer.Option(
            "--target",
            help="Dice whose number of clicks is counted; repeatable. 0.80 and 0.85 by default.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        str,
        typer.Option(
            metavar="click|box|found",
            help="What comes first: a click; a box; or, told a label, what the adapter finds of it.",
        ),
    ] = "click",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="MM",
            help="By how much a surface may be off in the surface Dice; by default the largest side of a "
            "voxel of each volume.",
            show_default=False,
        ),
    ] = None,
    distances: Annotated[
        bool, typer.Option("--distances/--no-distances", help="Measure surface Dice and HD95.")
    ] = True,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measured beside the model: walker (random walker), confidence (region growing) or prior "
            "(the embedded model untrained); repeatable.",
        ),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Measure the model without its adapter too, and the difference.")
    ] = False,
    net: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A network of `medsam-app finetune --baseline`, measured too; repeatable."
        ),
    ] = None,
    most_cases: Annotated[
        int | None,
        typer.Option(help="At most so many cases a dataset, evenly spread.", show_default=False),
    ] = None,
    per_case: Annotated[
        int | None,
        typer.Option(help="At most so many objects a case, evenly spread by size.", show_default=False),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine/--no-refine",
            help="Draw the outlines of large objects finely, as 'medsam-app segment' does; seconds a click.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of boxes, intervals and untrained weights.")] = 0,
    csv: Annotated[
        Path | None, typer.Option(help="Table of every score to write.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="File of the summaries to write.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Page (.html) with tables, curves and pictures to write.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
    model: ModelOption = DEFAULT_MODEL,
    weights: WeightsOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a model on labelled volumes by clicking as a careful person would.

    Each label of a case is an object. The first click is its deepest voxel, each next one the deepest voxel
    of the largest error. Exit status 1 says that cases could not be read and were skipped.
    """
    from medsam_app.commands import evaluate as evaluate_command
    from medsam_app.evaluate.options import EvaluateOptions
    from medsam_app.evaluate.summary import TARGETS
    from medsam_app.predict.model_choice import ModelChoice

    options = EvaluateOptions(
        model=ModelChoice(name=model, weights=weights, adapter=adapter, device=device),
        base=base,
        baselines=tuple(baseline or ()),
        nets=tuple(net or ()),
        split=split,
        datasets=tuple(datasets or ()),
        most_cases=most_cases,
        per_case=per_case,
        labels=tuple(labels or ()),
        clicks=_clicks(clicks),
        targets=tuple(sorted(set(targets))) if targets else TARGETS,
        first=first,
        distances=distances,
        tolerance=tolerance,
        refine=refine,
        seed=seed,
    )
    files = evaluate_command.OutputFiles(csv=csv, json=json, report=report, overwrite=overwrite)
    if evaluate_command.evaluate(dataset, options, files):
        raise typer.Exit(1)


def _clicks(text: str) -> int | tuple[int, ...]:
    """Return the numbers in '10' or '1,3,5'."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(
            f"--clicks takes a number such as 10, or several such as 1,3,5,10; got '{text}'."
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
