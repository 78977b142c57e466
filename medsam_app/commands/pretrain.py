"""`medsam-app pretrain`: check the inputs, join the processes, train, and stop cleanly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_app.atomic import write_whole
from medsam_app.console import note, say, step
from medsam_app.errors import SaveError, SettingsError, VolumeError
from medsam_app.predict.model_choice import check_weights
from medsam_app.pretraining.recipe import Recipe, read_recipe
from medsam_app.training.processes import is_first, process_device, process_group, stopping

if TYPE_CHECKING:  # heavy
    from medsam_app.pretraining.trainer import PretrainTrainer
    from medsam_app.pretraining.validation import Validation

#: File of the recipe in a run folder.
RECIPE = "recipe.json"
#: Folder of label maps of complete heads in a data folder.
HEADS = "head_label_maps"
#: Folder of the curves in a run folder.
CURVES = "tensorboard"


def pretrain(
    file: Path, *, out: Path, data: Path | None, weights: Path | None, device: str, tensorboard: bool
) -> bool:
    """Train a model with the settings of a recipe.

    Args:
        file: the recipe.
        out: folder of the run, which resumes from its saved state.
        data: folder with a manifest; None for synthetic windows alone.
        weights: initial weights of a new run.
        device: 'auto' or a torch device.
        tensorboard: whether to write curves.

    Returns:
        Whether the run is complete; False if it was stopped.

    Raises:
        MedsamError: an input cannot be used.
    """
    recipe = read_recipe(file)
    _check_inputs(recipe, data, weights)
    if tensorboard and find_spec("tensorboard") is None:
        raise SettingsError(
            "--tensorboard needs tensorboard, which is not installed; run 'pip install tensorboard'."
        )
    _check_run(recipe, out)
    first = is_first()
    with step("Loading", quiet=not first):
        from medsam_app.pretraining.trainer import PretrainTrainer
        from medsam_app.pretraining.validation import Validation
        from medsam_app.training.loop import RunLog, Watcher, run
        from medsam_app.training.watchers import Board, on_console

    torch_device, device_sentence = process_device(device)
    with process_group(torch_device), ExitStack() as stack:
        if first:  # log what was loaded from --weights
            logging.basicConfig(format="%(message)s")
            logging.getLogger(PretrainTrainer.__module__).setLevel(logging.INFO)
            note(device_sentence)
        with step("Reading", quiet=not first):
            trainer = PretrainTrainer(recipe, data, out, torch_device, weights)
            windows = Validation(recipe, data) if first and recipe.validates else None
        measure = None if windows is None else partial(_measured, trainer, windows)
        stopped = stack.enter_context(stopping())
        watchers: list[Watcher] = []
        if first:
            _write_recipe(recipe, out)
            watchers = [RunLog(out, trainer.step), stack.enter_context(on_console(recipe, trainer.done()))]
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
    trainer: PretrainTrainer, windows: Validation, stopped: Callable[[], bool]
) -> dict[str, list[float]] | None:
    """Measure the averaged weights."""
    return windows.measure(trainer.averaged(), trainer.device, stopped=stopped)


def _check_inputs(recipe: Recipe, data: Path | None, weights: Path | None) -> None:
    """Reject inputs that cannot be trained on, before anything slow starts."""
    check_weights(weights)
    if data is None:
        if not recipe.shares.get("synthetic"):
            raise SettingsError(
                "The recipe draws no synthetic windows, so labelled volumes are needed; give --data FOLDER."
            )
        return
    if not data.is_dir():
        raise VolumeError(f"There is no folder {data}; give a folder of labelled volumes.")
    if recipe.shares.get("real") or recipe.shares.get("pseudo"):
        from medsam_app.datasets.cases import list_cases

        list_cases(data, split="train")
    if recipe.shares.get("heads") and not any((data / HEADS).glob("*.nii.gz")):
        raise VolumeError(
            f"The recipe paints label maps of heads, but there are none ({data / HEADS}/*.nii.gz); put them "
            "there, or take 'heads' out of the recipe's shares."
        )


def _check_run(recipe: Recipe, out: Path) -> None:
    """Create the folder of the run, or reject one that holds a run with another recipe."""
    stored = out / RECIPE
    if stored.is_file():
        differences = recipe.differences(read_recipe(stored))
        if differences:
            raise SettingsError(
                f"The folder {out} holds a run of another recipe ({'; '.join(differences)}); give another "
                f"--out, or {stored} as the recipe to go on with it."
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"{out} cannot be the folder of a run ({error.strerror}); give another.") from None


def _write_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder, last: a folder counts as a run only once the recipe exists."""
    if (out / RECIPE).is_file():
        return
    try:
        write_whole(out / RECIPE, recipe.text())
    except OSError as error:
        raise SaveError(f"{out / RECIPE} cannot be written ({error.strerror}); give another --out.") from None
