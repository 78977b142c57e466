"""What `medsam-app pretrain` does: check, start the processes' group, train, and stop in order."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from medsam_app.commands import note, say, step
from medsam_app.errors import ModelError, SaveError, SettingsError, VolumeError
from medsam_app.recipe import Recipe, read_recipe
from medsam_app.whole_file import write_whole

if TYPE_CHECKING:  # heavy
    import torch

    from medsam_app.pretrain import Trainer
    from medsam_app.validation import Validation

#: The recipe of a run folder.
RECIPE = "recipe.json"
#: Folder of label maps of whole heads in a folder of data.
HEADS = "head_label_maps"
#: Curves in a run folder.
CURVES = "tensorboard"
#: How long processes wait for the first, which measures, and for each other while they read.
PATIENCE = timedelta(hours=3)


def pretrain(
    file: Path, *, out: Path, data: Path | None, weights: Path | None, device: str, tensorboard: bool
) -> bool:
    """Train by a recipe.

    Args:
        file: of the recipe.
        out: folder of the run, which goes on where it was saved.
        data: folder with a manifest; synthetic windows alone without it.
        weights: what a new run starts from.
        device: 'auto' or a device of torch.
        tensorboard: whether to write curves.

    Returns:
        whether the run is done; otherwise it was stopped.

    Raises:
        MedsamError: one of these cannot be used.
    """
    recipe = read_recipe(file)
    _check_inputs(recipe, data, weights)
    if tensorboard and find_spec("tensorboard") is None:
        raise SettingsError(
            "--tensorboard needs tensorboard, which is not installed; run 'pip install tensorboard'."
        )
    _check_run(recipe, out)
    first = os.environ.get("RANK", "0") == "0"
    with _told_by(first, "Loading"):
        from medsam_app.pretrain import Trainer
        from medsam_app.training_run import Journal, Watcher, run
        from medsam_app.training_watch import Board, on_console
        from medsam_app.validation import Validation

    where, told = _device(device)
    with _together(where), ExitStack() as stack:
        if first:  # what was taken from --weights
            logging.basicConfig(format="%(message)s")
            logging.getLogger(Trainer.__module__).setLevel(logging.INFO)
            note(told)
        with _told_by(first, "Reading"):
            trainer = Trainer(recipe, data, out, where, weights)
            windows = Validation(recipe, data) if first and recipe.validates else None
        measure = None if windows is None else partial(_measured, trainer, windows)
        stopped = stack.enter_context(_stopping())
        watchers: list[Watcher] = []
        if first:
            _write_recipe(recipe, out)
            watchers = [Journal(out, trainer.step), stack.enter_context(on_console(recipe, trainer.done()))]
            if tensorboard:
                watchers.append(stack.enter_context(closing(Board(out / CURVES, trainer.step))))
        done = run(trainer, measure, watchers=watchers, stopped=stopped)
    if first:
        if done:
            say(f"Done after {trainer.step} steps; the weights are {out / 'average.safetensors'}.")
        else:
            note(f"Saved in {out} after step {trainer.step}; the same command goes on from there.")
    return done


def _measured(
    trainer: Trainer, windows: Validation, stopped: Callable[[], bool]
) -> dict[str, list[float]] | None:
    """How good the averaged weights are."""
    return windows.measure(trainer.averaged(), trainer.device, stopped=stopped)


def _told_by(first: bool, text: str) -> AbstractContextManager[Any]:
    """Say what is being done, in the first process alone."""
    return step(text) if first else nullcontext()


def _check_inputs(recipe: Recipe, data: Path | None, weights: Path | None) -> None:
    """Refuse what cannot be trained on, before anything slow begins."""
    if weights is not None and not weights.exists():
        raise ModelError(f"There is no file of weights '{weights}'; check the path.")
    if data is None:
        if not recipe.shares.get("synthetic"):
            raise SettingsError(
                "The recipe draws no synthetic windows, so labelled volumes are needed; give --data FOLDER."
            )
        return
    if not data.is_dir():
        raise VolumeError(f"There is no folder {data}; give a folder of labelled volumes.")
    if recipe.shares.get("real") or recipe.shares.get("pseudo"):
        from medsam_app.cases import list_cases

        list_cases(data, split="train")
    if recipe.shares.get("heads") and not any((data / HEADS).glob("*.nii.gz")):
        raise VolumeError(
            f"The recipe paints label maps of heads, but there are none ({data / HEADS}/*.nii.gz); put them "
            "there, or take 'heads' out of the recipe's shares."
        )


def _check_run(recipe: Recipe, out: Path) -> None:
    """Make the folder of the run, or refuse one that holds a run of another recipe."""
    held = out / RECIPE
    if held.is_file():
        found = recipe.differences(read_recipe(held))
        if found:
            raise SettingsError(
                f"The folder {out} holds a run of another recipe ({'; '.join(found)}); give another --out, "
                f"or {held} as the recipe to go on with it."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"{out} cannot be the folder of a run ({error.strerror}); give another.") from None


def _write_recipe(recipe: Recipe, out: Path) -> None:
    """Say in the folder what run it holds; last, so that one that could not begin leaves no mark."""
    if (out / RECIPE).is_file():
        return
    try:
        write_whole(out / RECIPE, recipe.text())
    except OSError as error:
        raise SaveError(f"{out / RECIPE} cannot be written ({error.strerror}); give another --out.") from None


def _device(wanted: str) -> tuple[torch.device, str]:
    """The device of this process, and a sentence that says so; torchrun numbers a machine's processes."""
    import torch

    from medsam_app.models.load import choose_device

    device, told = choose_device(wanted)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise SettingsError(
                f"Each process takes a GPU of its own, but --device names {device} for all; give cuda."
            )
        device, told = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if device.index is None else wanted)
        torch.cuda.set_device(device)
    return device, told


@contextmanager
def _together(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Take Ctrl-C and SIGTERM as a wish to stop after the step; yields what says whether there is one.

    A second Ctrl-C stops at once, unless torchrun is there, which passes on the one that all have got.
    """
    wished = False

    def wish(number: int, frame: FrameType | None) -> None:
        nonlocal wished
        wished = True
        if number == signal.SIGINT and "WORLD_SIZE" not in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
