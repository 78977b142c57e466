"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ImageArgument = Annotated[
    Path,
    typer.Argument(help="NIfTI, NRRD, MetaImage, or a folder or zip of DICOM slices.", show_default=False),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of a model; see 'medsam-app models'.", show_default=False)
]
ModelOption = Annotated[str, typer.Option("--model", help="Name of a model; see 'medsam-app models'.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="Checkpoint in place of the published one.", show_default=False),
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", help="Adapter of that model to switch on.", show_default=False)
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
SeriesOption = Annotated[str | None, typer.Option("--series", help="Which DICOM series, of several.")]
FrameOption = Annotated[int | None, typer.Option("--frame", min=0, help="Which frame of a 4D image, from 0.")]
ChannelOption = Annotated[int | None, typer.Option("--channel", min=0, help="Which channel, from 0.")]
