"""Command line `medsam-app`, implemented in `medsam_app.commands`.

This module imports torch, MONAI and gradio only when a command needs them, so that help and tables appear at
once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from medsam_app._version import __version__
from medsam_app.cli.dataset import dataset_app
from medsam_app.cli.evaluate import evaluate
from medsam_app.cli.finetune import finetune
from medsam_app.cli.options import (
    AdapterOption,
    ChannelOption,
    DeviceOption,
    FrameOption,
    ImageArgument,
    ModelArgument,
    ModelOption,
    SeriesOption,
    WeightsOption,
)
from medsam_app.cli.pretrain import pretrain
from medsam_app.cli.segment import segment
from medsam_app.errors import MedsamError, SeriesChoice
from medsam_app.models.table import DEFAULT_MODEL

#: Exit status of an error in the input, and of Ctrl-C, as in shells.
MISTAKE, INTERRUPTED = 2, 130

app = typer.Typer(
    name="medsam-app",
    help="Segment medical volumes by clicking, from files, or in bulk. Research use, not a medical device.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help text, identical in a terminal and in a log.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

models_app = typer.Typer(help="Print the models, fetch their weights.")
app.add_typer(models_app, name="models")
app.add_typer(dataset_app, name="dataset")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"medsam-app {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def serve(
    image: Annotated[
        Path | None, typer.Argument(help="Opened at the start; without it, a sample.", show_default=False)
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 7860,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder whose files may be opened in the browser; repeatable.")
    ] = None,
    worklist: Annotated[
        Path | None,
        typer.Option(
            help="Folder for worklists and masks, where the data is read-only; with the data by default.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    weights: WeightsOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    auth: Annotated[
        list[str] | None,
        typer.Option(
            metavar="USER:PASSWORD",
            help="Who is let in; repeatable. Other users of this machine see it; better --auth-file, or the "
            "same lines in the variable MEDSAM_APP_AUTH.",
        ),
    ] = None,
    auth_file: Annotated[
        Path | None, typer.Option(help="Who is let in: USER:PASSWORD, one a line.", show_default=False)
    ] = None,
    session_memory: Annotated[
        float | None,
        typer.Option(
            min=0.1, metavar="GB", help="Memory for everybody's volumes and masks; by default half of all."
        ),
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = True,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON with the objects to offer: name, label, colour, may_overlap."),
    ] = None,
) -> None:
    """Start the browser app."""
    from medsam_app.browser.options import ServeOptions
    from medsam_app.browser.security.accounts import read_accounts
    from medsam_app.commands import serve as serve_command
    from medsam_app.predict.model_choice import ModelChoice
    from medsam_app.session.label_set import read_label_set

    options = ServeOptions(
        image=image,
        host=host,
        port=port,
        roots=tuple(root or ()),
        worklist=worklist,
        model=ModelChoice(name=model, weights=weights, adapter=adapter, device=device),
        auth=tuple(read_accounts(auth or (), auth_file)) or None,
        session_bytes=None if session_memory is None else int(session_memory * 1e9),
        open_browser=open_browser,
        labels=() if labels is None else read_label_set(labels),
    )
    serve_command.serve(options)


app.command()(segment)


@app.command()
def info(
    image: ImageArgument,
    series: SeriesOption = None,
    frame: FrameOption = None,
    channel: ChannelOption = None,
) -> None:
    """Print shape, spacing, orientation, intensities and series of an image."""
    from medsam_app.commands import info as info_command

    info_command.info(image, series=series, frame=frame, channel=channel)


app.command()(evaluate)
app.command()(finetune)
app.command()(pretrain)


@models_app.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    """Print the models: licence, size, and whether they are on this machine."""
    if context.invoked_subcommand is None:
        from medsam_app.commands import models as models_command

        models_command.models()


@models_app.command()
def download(
    name: ModelArgument,
    file: Annotated[
        Path | None,
        typer.Option(help="Take the weights from this file, fetched by other means.", show_default=False),
    ] = None,
) -> None:
    """Bring the weights of a model to this machine, and verify them.

    They go to a folder of the user's cache, or of MEDSAM_APP_HOME where that is set.
    """
    from medsam_app.commands import models as models_command

    models_command.download(name, file=file)


@models_app.command()
def show(name: ModelArgument) -> None:
    """Print everything known about a model."""
    from medsam_app.commands import models as models_command

    models_command.show(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        Exit status: 0, 1 if part of the input was skipped, 2 for an error in the input, 130 for Ctrl-C.
    """
    # Spinning OpenMP threads make a click several times slower when other processes use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The same holds for OpenBLAS, used mainly by SciPy's solvers: a random walker took 40 s instead of 1.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # For Click and for its copy in newer versions of typer: BadParameter < UsageError < ClickException.
    usage_error: type[Exception] = cast(Any, typer.BadParameter).__mro__[2]
    errors = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

    def complain(message: str) -> int:
        errors.print("Error: ", style="bold red", end="")
        errors.print(message, markup=False)
        return MISTAKE

    try:
        # Typer reads the arguments of the process when given None.
        argument_list = None if arguments is None else list(arguments)
        status = typer.main.get_command(app).main(
            argument_list,
            prog_name="medsam-app",
            standalone_mode=False,
            obj=sys.argv[1:] if argument_list is None else argument_list,
        )
        if status == INTERRUPTED:  # newer versions of typer return this status for Ctrl-C
            raise KeyboardInterrupt
        # Flush here, so that a pipe closed early raises here and not at exit.
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except SeriesChoice as error:
        complain(str(error))
        for value, description in error.choices:
            errors.print(f"  --{error.option} {value}   {description}", markup=False)
        return MISTAKE
    except MedsamError as error:
        return complain(str(error))
    except usage_error as error:
        usage_message = cast(Any, error).format_message()
        command = getattr(getattr(error, "ctx", None), "command_path", "medsam-app")
        return complain(f"{usage_message.rstrip('.')}. See '{command} --help'.")
    except (KeyboardInterrupt, typer.Abort):
        errors.print("Stopped.")
        return INTERRUPTED
    except BrokenPipeError:
        # For example `medsam-app info x | head -1`; the interpreter must not flush to the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
