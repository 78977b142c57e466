"""What `medsam-app segment` takes; what it does is in `medsam_app.segment_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsam_app.cli_options import (
    AdapterOption,
    ChannelOption,
    DeviceOption,
    FrameOption,
    ImageArgument,
    ModelOption,
    SeriesOption,
    WeightsOption,
)
from medsam_app.models.table import DEFAULT_MODEL


def segment(
    image: ImageArgument,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Mask to write: .nii, .nii.gz, .nrrd, .mha or .mhd.", show_default=False
        ),
    ],
    point: Annotated[
        list[str] | None,
        typer.Option("--point", metavar="I,J,K", help="Voxel inside the object; repeatable."),
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option("--negative", metavar="I,J,K", help="Voxel outside it; repeatable.")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box",
            metavar="I,J,K,I,J,K",
            help="Box by two opposite corners; flat along one axis, it lies on that slice; repeatable.",
        ),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Mask to refine, on the image's grid.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt file with any number of objects, instead of the above.")
    ] = None,
    world: Annotated[
        bool, typer.Option("--world", help="Points and boxes are mm in RAS+ (x,y,z), not voxel indices.")
    ] = False,
    label: Annotated[
        int | None,
        typer.Option(
            help="Value of the object in the mask; 1 by default. A value that the adapter was taught says "
            "what the object is.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the object.")] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine",
            help="Draw the outlines of large objects finely, which takes seconds; on by default.",
            show_default=False,
        ),
    ] = None,
    automatic: Annotated[
        bool, typer.Option("--automatic", help="No prompts: find all labels that the adapter was taught.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME|VALUE", help="With --automatic, this label; repeatable."),
    ] = None,
    largest: Annotated[
        bool,
        typer.Option("--largest", help="With --automatic, keep of each label its largest connected part."),
    ] = False,
    series: SeriesOption = None,
    frame: FrameOption = None,
    channel: ChannelOption = None,
    model: ModelOption = DEFAULT_MODEL,
    weights: WeightsOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    save_prompts: Annotated[Path | None, typer.Option(help="Write a prompt file that replays this.")] = None,
    other_image: Annotated[
        bool, typer.Option("--other-image", help="Accept a prompt file of another image on the same grid.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are there already.")
    ] = False,
) -> None:
    """Segment an image from prompts, or without any; the mask lies on the image's own grid.

    Order: the mask, then boxes, then points, then negative points.
    """
    from medsam_app import segment_command

    segment_command.segment(
        segment_command.Segmentation(
            image=image,
            output=output,
            points=point or [],
            negatives=negative or [],
            boxes=box or [],
            mask=mask,
            prompt_file=prompts,
            world=world,
            label=label,
            name=name,
            refine=refine,
            series=series,
            frame=frame,
            channel=channel,
            model=model,
            weights=weights,
            adapter=adapter,
            device=device,
            save_prompts=save_prompts,
            other_image=other_image,
            overwrite=overwrite,
            automatic=automatic,
            only=only or [],
            largest=largest,
        )
    )
