"""Options of `medsam-app finetune`, implemented in `medsam_app.commands.finetune`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam_app.cli.options import DeviceOption, WeightsOption
from medsam_app.errors import SettingsError

#: Exit status of a stopped run, as for Ctrl-C in shells.
_STOPPED = 130


def finetune(
    context: typer.Context,
    dataset: Annotated[
        Path,
        typer.Argument(
            help="Labelled volumes: a folder of the Decathlon or of nnU-Net, pairs of files, or a list.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Adapter to write, NAME.safetensors; the run is in NAME.run.",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="Model that is taught; sam3d_tiny by default.", show_default=False)
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="spatial, bottleneck, lora or ssf; spatial by default.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", metavar="NAME|VALUE", help="Labels to learn, all by default; repeatable, or a,b,c."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Cases of this split; 'train' where there is one.", show_default=False),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option("--dataset", metavar="NAME", help="Of a folder with several; repeatable."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time to train; 30 by default.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Updates, instead of minutes.", show_default=False)
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="JSON file with any items of the plan.", show_default=False)
    ] = None,
    items: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ITEM=VALUE", help="Any item of the plan, value as JSON; repeatable."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="unet|swin_unetr",
            help="Network of MONAI's that is taught afterwards on the same windows for as long, and measured "
            "beside the adapter.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="GB",
            help="Most memory of all processes, such as 6 or 6GB; most of what is free by default.",
            show_default=False,
        ),
    ] = None,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight/--no-preflight",
            help="Try a step first and make the plan fit into memory; without, it is taken as it is.",
        ),
    ] = True,
    processes: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Processes that share the run; auto: on a CPU up to 4, of a run of 5 minutes or more.",
        ),
    ] = "auto",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves to the folder 'tensorboard' of the run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and what it takes, and stop.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an adapter that is there already; start anew.")
    ] = False,
) -> None:
    """Teach an adapter on labelled volumes, by simulated clicks.

    The plan follows from the data and is shown first. Some cases are kept apart and measured. Ctrl-C keeps
    the best so far; the same command goes on from there.

    Several GPUs share the work: torchrun --nproc-per-node=2 -m medsam_app finetune ...
    """
    from medsam_app.commands import finetune as finetune_command
    from medsam_app.commands.finetune_options import FinetuneOptions
    from medsam_app.finetuning.plan import merge_settings, read_settings

    simple_fields = {"base": base, "adapter": adapter, "split": split, "minutes": minutes, "steps": steps}
    fields: dict[str, Any] = {name: value for name, value in simple_fields.items() if value is not None}
    if datasets:
        fields["datasets"] = tuple(datasets)
    if labels:
        fields["labels"] = [part.strip() for text in labels for part in text.split(",") if part.strip()]
    options = FinetuneOptions(
        dataset=dataset,
        output=output,
        fields=merge_settings(
            {} if settings is None else read_settings(settings), _items(items or []) | fields
        ),
        baseline=baseline,
        memory=_gigabytes(memory),
        preflight=preflight,
        weights=weights,
        device=device,
        tensorboard=tensorboard,
        dry_run=dry_run,
        overwrite=overwrite,
        processes=_count(processes),
        command=context.obj,
    )
    if not finetune_command.finetune(options):
        raise typer.Exit(_STOPPED)


def _count(text: str) -> int | None:
    """Return the number of processes for '2', or None for 'auto'."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"--processes is a number from 1 on, or auto; got '{text}'.")
    return int(text)


def _gigabytes(text: str | None) -> int | None:
    """Return the bytes of '6', '6GB' or '6 GB'."""
    if text is None:
        return None
    try:
        size = float(text.strip().upper().removesuffix("B").removesuffix("G")) * 1e9
    except ValueError:
        size = 0.0
    if not 0 < size < 1e15:
        raise SettingsError(f"--memory is a number of gigabytes, such as 6 or 6GB; got '{text}'.")
    return int(size)


def _items(items: Sequence[str]) -> dict[str, Any]:
    """Return fields of a plan from 'name=value'; a value that is not JSON is text."""
    fields: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"--set takes ITEM=VALUE, such as --set rotate=0; got '{item}'.")
        try:
            fields[name.strip()] = json.loads(text)
        except ValueError:
            fields[name.strip()] = text
    return fields
