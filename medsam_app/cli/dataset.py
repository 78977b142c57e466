"""Options of `medsam-app dataset`, implemented in `medsam_app.commands.dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

dataset_app = typer.Typer(
    help="Look at labelled volumes before a model learns from them.", no_args_is_help=True
)


@dataset_app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder of labelled volumes, or a .csv or .json list of them.", show_default=False
        ),
    ],
    json: Annotated[
        Path | None,
        typer.Option(help="File to write everything to, each case by itself.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there already.")
    ] = False,
) -> None:
    """Read every case, print what they are like and everything that is wrong with them.

    Understood are Medical Segmentation Decathlon and nnU-Net v2 folders, folders of images and labels side
    by side, pairs of files in one folder, lists, and folders with a manifest.json. Exit status 1 says that
    there are cases that cannot be used.
    """
    from medsam_app.commands import dataset

    if dataset.inspect(path, json_file=json, overwrite=overwrite):
        raise typer.Exit(1)
