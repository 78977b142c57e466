"""What `medsam-app evaluate` takes; what it does is in `medsam_app.evaluate_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsam_app.cli_options import AdapterOption, DeviceOption, ModelOption, WeightsOption
from medsam_app.models.table import DEFAULT_MODEL


def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="Labelled volumes, with a manifest.json.", show_default=False)
    ],
    split: Annotated[str, typer.Option(help="Which cases of the manifest.")] = "dev",
    clicks: Annotated[int, typer.Option(help="Clicks on each object.")] = 10,
    first: Annotated[
        str, typer.Option(metavar="click|box", help="What comes first: a click, or a box and then clicks.")
    ] = "click",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measured beside the model: walker (random walker), confidence (region growing) or prior "
            "(the embedded model untrained); repeatable.",
        ),
    ] = None,
    most_cases: Annotated[
        int | None,
        typer.Option(help="At most so many cases a dataset, evenly spread.", show_default=False),
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Draw the outlines of large objects finely; seconds a click.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of boxes, intervals and untrained weights.")] = 0,
    csv: Annotated[
        Path | None, typer.Option(help="Table of every score to write.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="File of the summaries to write.", show_default=False)
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
    from medsam_app import evaluate_command

    skipped = evaluate_command.evaluate(
        folder,
        csv_file=csv,
        json_file=json,
        overwrite=overwrite,
        split=split,
        clicks=clicks,
        first=first,
        baselines=baseline or [],
        most_cases=most_cases,
        refine=refine,
        seed=seed,
        model=model,
        weights=weights,
        adapter=adapter,
        device=device,
    )
    if skipped:
        raise typer.Exit(1)
