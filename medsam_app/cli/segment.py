"""Options of `medsam-app segment`, implemented in `medsam_app.commands.segment`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam_app.cli.options import (
    AdapterOption,
    ChannelOption,
    DeviceOption,
    FrameOption,
    ImageArgument,
    ModelOption,
    SeriesOption,
    WeightsOption,
)
from medsam_app.errors import SettingsError
from medsam_app.models.table import DEFAULT_MODEL


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    """Reject options that were given and do not apply."""
    names = [name for name, value in options.items() if value not in (None, False, [])]
    if names:
        raise SettingsError(f"{names[0]} is {reason}.")


def segment(
    image: ImageArgument,
    output_folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUTPUT_FOLDER]",
            help="Segment every volume of the folder IMAGE into this one.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Mask to write: .nii, .nii.gz, .nrrd, .mha or .mhd.", show_default=False
        ),
    ] = None,
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
        Path | None,
        typer.Option(
            help="Prompt file with any number of objects, instead of the above; for a folder: a folder of "
            "prompt files or a CSV table, and without it prompt files beside the images."
        ),
    ] = None,
    alternative: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Another mask for the first point or box, by its number. Without it the numbers are listed.",
            show_default=False,
        ),
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
    net: Annotated[
        Path | None,
        typer.Option(
            help="For a folder with --automatic: a network of 'medsam-app finetune --baseline' instead of an "
            "adapter.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="For a folder: folder of coarse masks that say where objects are.",
            show_default=False,
        ),
    ] = None,
    from_masks: Annotated[
        str,
        typer.Option(metavar="box|point|both", help="Of each label of --masks."),
    ] = "box",
    jitter: Annotated[
        float,
        typer.Option(help="How unsteady boxes from --masks are, as a part of them."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of --jitter.")] = 0,
    format: Annotated[
        str,
        typer.Option(
            metavar="nii.gz|nii|nrrd|mha|input",
            help="For a folder: of the masks; 'input' is that of each image, DICOM segmentations for DICOM.",
        ),
    ] = "nii.gz",
    separate: Annotated[bool, typer.Option("--separate", help="For a folder: one file an object.")] = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="For a folder: also each object's probability, in NIfTI."),
    ] = False,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="For a folder: where cases are run.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Of Ray: how many, each with a model of its own.", show_default=False),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster; without it one on this machine.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="For a folder: only part I of N of the cases.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="For a folder: show what would be done, and stop.")
    ] = False,
) -> None:
    """Segment an image, or all of a folder, from prompts or without any; a mask lies on its image's own grid.

    Order of prompts: the mask, then boxes, then points, then negative points.

    A folder: medsam-app segment IMAGES MASKS. What fails is told at the end; a run that was ended goes on by
    the same command.
    """
    batch_settings: dict[str, Any] = {
        "net": net, "masks": masks, "from_masks": from_masks, "jitter": jitter, "seed": seed,
        "format": format, "separate": separate, "probabilities": probabilities,
    }  # fmt: skip
    run_options: dict[str, Any] = {
        "engine": engine, "workers": workers, "ray_address": ray_address, "shard": shard, "dry_run": dry_run,
    }  # fmt: skip
    if output_folder is not None:
        from medsam_app.commands import segment_folder as batch_command

        single = {
            "-o": output, "--point": point, "--negative": negative, "--box": box, "--mask": mask,
            "--alternative": alternative, "--world": world, "--label": label, "--name": name,
            "--series": series, "--save-prompts": save_prompts,
        }  # fmt: skip
        _refuse(single, "for one image; for a folder give --prompts, --masks or --automatic")
        batch_settings |= {
            "model": model, "weights": weights, "adapter": adapter, "prompts": prompts,
            "automatic": automatic, "only": tuple(only or ()), "largest": largest, "refine": refine,
            "frame": frame, "channel": channel, "other_image": other_image,
        }  # fmt: skip
        status = batch_command.segment_folder(
            image, output_folder, settings=batch_settings, device=device, overwrite=overwrite, **run_options
        )
        if status:
            raise typer.Exit(status)
        return
    defaults = {"from_masks": "box", "jitter": 0.0, "seed": 0, "format": "nii.gz", "engine": "local"}
    folder_options = {
        name: value for name, value in (batch_settings | run_options).items() if value != defaults.get(name)
    }
    _refuse(
        {f"--{name.replace('_', '-')}": value for name, value in folder_options.items()},
        "for a folder; give the folder of the masks after that of the images",
    )
    if output is None:
        raise SettingsError(
            "Nothing says where the mask goes; give -o with a file's name, or for a folder of images the "
            "folder of the masks after it."
        )
    from medsam_app.commands import segment as segment_command
    from medsam_app.predict.model_choice import ModelChoice

    segment_command.segment(
        segment_command.Segmentation(
            image=image,
            output=output,
            points=point or [],
            negatives=negative or [],
            boxes=box or [],
            mask=mask,
            prompt_file=prompts,
            alternative=alternative,
            world=world,
            label=label,
            name=name,
            refine=refine,
            series=series,
            frame=frame,
            channel=channel,
            model=ModelChoice(name=model, weights=weights, adapter=adapter, device=device),
            save_prompts=save_prompts,
            other_image=other_image,
            overwrite=overwrite,
            automatic=automatic,
            only=only or [],
            largest=largest,
        )
    )
