"""`medsam-app finetune`: read the dataset, plan, train, and report the benefit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.atomic import replace_file
from medsam_app.commands.finetune_options import FinetuneOptions
from medsam_app.commands.finetune_setup import PLAN, PreparedRun, prepare, prepared_run
from medsam_app.console import check_target, note, say, step
from medsam_app.errors import SaveError
from medsam_app.finetuning.plan import Plan, read_plan
from medsam_app.finetuning.planning import MINUTES
from medsam_app.training.processes import (
    is_first,
    process_count,
    process_device,
    process_group,
    stopping,
    suitable_count,
)

if TYPE_CHECKING:  # heavy
    import torch

    from medsam_app.finetuning.trainer import FinetuneTrainer
    from medsam_app.training.loop import Watcher

#: In the folder of a run: its latest adapter and its curves.
LAST, CURVES = "last.safetensors", "tensorboard"


def finetune(options: FinetuneOptions) -> bool:
    """Train an adapter.

    Returns:
        Whether the run is complete; False if it was stopped.

    Raises:
        MedsamError: an input cannot be used, or a file cannot be written.
    """
    first, out = is_first(), options.run_folder
    resumes = (out / PLAN).is_file() and not options.overwrite
    device, sentence = process_device(options.device)
    count = options.processes
    if count is None:
        count = _suitable_processes(options, device, resumes=resumes) if first and not options.dry_run else 1
    with process_group(device, count=count, command=options.command), ExitStack() as stack:
        if first:
            if not resumes:
                check_target(options.adapter_file, sources=[options.dataset], overwrite=options.overwrite)
            note(sentence)
            if not resumes or options.dry_run:
                prepare(options, device)
        if options.dry_run:
            return True
        _wait_for_preparation(device)
        prepared = prepared_run(options.dataset, out, options.fields)
        with step("Reading", quiet=not first):
            from medsam_app.finetuning.trainer import FinetuneTrainer
            from medsam_app.training.loop import run

            trainer = FinetuneTrainer(
                prepared.plan,
                prepared.learned,
                prepared.measured,
                out,
                device,
                weights=options.weights,
                memory=prepared.caches,
            )
        if first:
            _print_cases(prepared, trainer)
        stopped = stack.enter_context(stopping())
        watchers = _watchers(prepared.plan, trainer, stack, curves=options.tensorboard) if first else []
        measure = trainer.measure if trainer.validation is not None and prepared.plan.validates else None
        done = run(trainer, measure, watchers=watchers, stopped=lambda: stopped() or trainer.stalled())
        done = done or trainer.stalled()
        if first:
            _save_adapter(trainer, options.adapter_file, done=done)
        if done and options.baseline is not None:
            done = _train_baseline(options.baseline, prepared, trainer, stopped=stopped)
    if first and done and prepared.measured:
        _measure_gain(options, prepared)
    return done


def _suitable_processes(options: FinetuneOptions, device: torch.device, *, resumes: bool) -> int:
    """Return a suitable number of processes for a run whose settings are only partly known."""
    known = dict(options.fields)
    if resumes:
        known |= read_plan(options.run_folder / PLAN).model_dump()
    minutes = known.get("minutes") or (None if known.get("steps") else MINUTES)
    batch = known.get("batch", Plan.model_fields["batch"].default)
    if not (isinstance(minutes, int | float | None) and isinstance(batch, int)):
        return 1  # planning reports the error
    return suitable_count(device, minutes=minutes, batch=batch, memory=options.memory)


def _watchers(plan: Plan, trainer: FinetuneTrainer, stack: ExitStack, *, curves: bool) -> list[Watcher]:
    """Return the log, the console and optional curves; they are closed with the stack."""
    from medsam_app.training.loop import RunLog
    from medsam_app.training.watchers import Board, on_console

    console = on_console(plan, trainer.done())
    watchers: list[Watcher] = [RunLog(trainer.out, trainer.step), stack.enter_context(console)]
    if curves:
        watchers.append(stack.enter_context(closing(Board(trainer.out / CURVES, trainer.step))))
    return watchers


def _measure_gain(options: FinetuneOptions, prepared: PreparedRun) -> None:
    """Measure the adapter on the held-out cases."""
    from medsam_app.commands.finetune_report import report_gain

    out = options.run_folder
    report_gain(
        options.adapter_file,
        out,
        prepared.plan,
        prepared.dataset,
        prepared.measured,
        weights=options.weights,
        nets=[] if options.baseline is None else [out / f"{options.baseline}.safetensors"],
        device=options.device,
    )


def _train_baseline(
    name: str, prepared: PreparedRun, trainer: FinetuneTrainer, *, stopped: Callable[[], bool]
) -> bool:
    """Train a MONAI network on the same windows; return whether the training is complete."""
    from medsam_app.finetuning.baseline_trainer import BaselineTrainer
    from medsam_app.training.loop import RunLog, run
    from medsam_app.training.watchers import on_console

    folder = trainer.out / name
    baseline = BaselineTrainer(
        name, prepared.plan, prepared.learned, folder, trainer.device, memory=prepared.caches
    )
    if trainer.rank:
        return run(baseline, stopped=stopped)
    note(f"Teaching {name} on the same windows.")
    folder.mkdir(exist_ok=True)
    with on_console(prepared.plan, baseline.done()) as watcher:
        done = run(baseline, watchers=[RunLog(folder, baseline.step), watcher], stopped=stopped)
    baseline.keep(trainer.out / f"{name}.safetensors")
    return done


def _wait_for_preparation(device: Any) -> None:
    """Wait until the first process has prepared the run."""
    if process_count() > 1:
        import torch.distributed as dist

        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def _print_cases(prepared: PreparedRun, trainer: FinetuneTrainer) -> None:
    """Print the numbers of training and validation cases."""
    text = f"Learning from {len(prepared.learned)} cases, measuring on {len(prepared.measured)}"
    if trainer.windows.cached < trainer.windows.count:
        text += (
            f"; {trainer.windows.cached} of those learned from fit into memory, the others are read each time"
        )
    note(text + (f"; going on after step {trainer.step}." if trainer.step else "."))


def _save_adapter(trainer: FinetuneTrainer, output: Path, *, done: bool) -> None:
    """Copy the best adapter to the requested path, and print the paths."""
    from medsam_app.finetuning.trainer import BEST

    out = trainer.out
    trainer.keep_last(out / LAST)
    best = out / (BEST if trainer.best > 0 else LAST)
    try:
        with replace_file(output) as draft:
            shutil.copyfile(best, draft)
    except OSError as error:
        raise SaveError(f"{output} could not be written ({error.strerror}); the adapter is {best}.") from None
    if done:
        say(f"Done after {trainer.step} steps; the adapter is {output}.")
    else:
        say(f"Stopped after step {trainer.step}; the best adapter so far is {output}.")
        note(f"The run is in {out}; the same command goes on from there.")
