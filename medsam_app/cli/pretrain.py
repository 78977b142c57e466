"""Options of `medsam-app pretrain`, implemented in `medsam_app.commands.pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsam_app.cli.options import DeviceOption

#: Exit status of a stopped run, as for Ctrl-C in shells.
_STOPPED = 130


def pretrain(
    recipe: Annotated[
        Path, typer.Argument(help="Settings, as in models/recipes/sam3d_tiny.json.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the run; started again, it goes on.", show_default=False)
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled volumes, with a manifest.json; synthetic windows alone without it.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to start from, where they fit.", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves to the folder 'tensorboard' of the run.")
    ] = False,
) -> None:
    """Train the embedded model by simulated clicks.

    Several processes share the work: torchrun --nproc-per-node=2 -m medsam_app pretrain ...

    Ctrl-C saves; the same command goes on from there.
    """
    from medsam_app.commands import pretrain as pretrain_command

    done = pretrain_command.pretrain(
        recipe, out=out, data=data, weights=weights, device=device, tensorboard=tensorboard
    )
    if not done:
        raise typer.Exit(_STOPPED)
