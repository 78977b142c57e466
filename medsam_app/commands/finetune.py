"""What `medsam-app finetune` does: read the dataset, settle the plan, teach, and say what it brought."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.atomic import replace_file
from medsam_app.commands.finetune_setup import PLAN, PreparedRun, prepare, prepared_run
from medsam_app.console import check_target, note, say
from medsam_app.errors import SaveError, SettingsError, unknown_name
from medsam_app.finetuning.plan import Plan, laid_over, read_plan, read_settings
from medsam_app.finetuning.planning import MINUTES
from medsam_app.predict.baseline_file import BASELINE_NETS
from medsam_app.predict.model_choice import check_weights
from medsam_app.training.processes import (
    is_first,
    process_count,
    process_device,
    stopping,
    suitable_count,
    together,
    told_by,
)

if TYPE_CHECKING:  # heavy
    import torch

    from medsam_app.finetuning.trainer import FinetuneTrainer

#: In the folder of a run: its adapter as it was last, its curves.
LAST, CURVES = "last.safetensors", "tensorboard"


def finetune(
    path: Path,
    *,
    output: Path,
    given: Mapping[str, Any],
    items: Sequence[str],
    settings: Path | None,
    baseline: str | None,
    memory: str | None,
    preflight: bool,
    weights: Path | None,
    device: str,
    tensorboard: bool,
    dry_run: bool,
    overwrite: bool,
    processes: int | None = 1,
    command: Sequence[str] = (),
) -> bool:
    """Teach an adapter.

    Args:
        path: the dataset.
        output: gets the adapter; the folder of the run is beside it.
        given: fields of `Plan` that were asked for.
        items: more of them, as 'name=value' with the value in JSON.
        settings: a file of yet more, under both.
        baseline: name of a network that learns from the same windows afterwards.
        memory: most memory of all processes, '6' or '6GB'; None for most of what is free.
        preflight: whether a step is tried before, and the plan made to fit.
        weights: of the base, instead of the published ones.
        device: 'auto' or a device of torch.
        tensorboard: whether to write curves.
        dry_run: whether to stop once the plan was shown.
        overwrite: whether to replace an adapter, and a run that is there.
        processes: that share the run, unless torchrun started some; None for as many as suit the machine.
        command: arguments of `medsam-app` that the others of them are started with.

    Returns:
        whether the run is done; otherwise it was stopped.

    Raises:
        MedsamError: one of these cannot be used.
    """
    output = output if output.suffix == ".safetensors" else output.with_name(output.name + ".safetensors")
    out = output.with_name(output.stem + ".run")
    budget = _gigabytes(memory)
    check_weights(weights)
    if tensorboard and find_spec("tensorboard") is None:
        raise SettingsError(
            "--tensorboard needs tensorboard, which is not installed; run 'pip install tensorboard'."
        )
    options = {} if settings is None else read_settings(settings)
    asked = laid_over(options, _items(items) | dict(given))
    if baseline is not None and baseline not in BASELINE_NETS:
        raise SettingsError(unknown_name("baseline", baseline, BASELINE_NETS))
    first = is_first()
    resumes = (out / PLAN).is_file() and not overwrite
    where, told = process_device(device)
    if processes is None:
        known = asked | (read_plan(out / PLAN).model_dump() if resumes else {})
        processes = 1 if dry_run or not first else _suitable(known, where, budget)
    with together(where, count=processes, command=command), ExitStack() as stack:
        if first:
            if not resumes:
                check_target(output, sources=[path], overwrite=overwrite)
            note(told)
            if not resumes or dry_run:
                how: dict[str, Any] = {"weights": weights, "device": where, "dry_run": dry_run}
                prepare(path, out, asked, memory=budget, preflight=preflight, **how)
        if dry_run:
            return True
        _wait(where)
        prepared = prepared_run(path, out, asked)
        with told_by(first, "Reading"):
            from medsam_app.finetuning.trainer import FinetuneTrainer
            from medsam_app.training.loop import RunLog, Watcher, run
            from medsam_app.training.watchers import Board, on_console

            trainer = FinetuneTrainer(
                prepared.plan,
                prepared.learned,
                prepared.measured,
                out,
                where,
                weights=weights,
                memory=prepared.caches,
            )
        if first:
            _tell_cases(prepared, trainer)
        stopped = stack.enter_context(stopping())
        watchers: list[Watcher] = []
        if first:
            console = on_console(prepared.plan, trainer.done())
            watchers = [RunLog(out, trainer.step), stack.enter_context(console)]
            if tensorboard:
                watchers.append(stack.enter_context(closing(Board(out / CURVES, trainer.step))))
        measure = trainer.measure if trainer.validation is not None and prepared.plan.validates else None
        done = run(trainer, measure, watchers=watchers, stopped=lambda: stopped() or trainer.settled())
        done = done or trainer.settled()
        if first:
            _keep(trainer, output, done=done)
        if done and baseline is not None:
            done = _train_baseline(baseline, prepared, trainer, stopped=stopped)
    if first and done and prepared.measured:
        from medsam_app.commands.finetune_report import tell_gain

        nets = [] if baseline is None else [out / f"{baseline}.safetensors"]
        tell_gain(
            output,
            out,
            prepared.plan,
            prepared.dataset,
            prepared.measured,
            weights=weights,
            nets=nets,
            device=device,
        )
    return done


def _suitable(known: Mapping[str, Any], where: torch.device, memory: int | None) -> int:
    """How many processes suit a run of which so much is known."""
    minutes = known.get("minutes") or (None if known.get("steps") else MINUTES)
    batch = known.get("batch", Plan.model_fields["batch"].default)
    known_length = isinstance(minutes, int | float | None) and isinstance(
        batch, int
    )  # else planning says what is wrong
    return suitable_count(where, minutes=minutes, batch=batch, memory=memory) if known_length else 1


def _train_baseline(
    name: str, prepared: PreparedRun, trainer: FinetuneTrainer, *, stopped: Callable[[], bool]
) -> bool:
    """Teach a network of MONAI's the same; whether that is done."""
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


def _gigabytes(text: str | None) -> int | None:
    """Bytes of '6', '6GB' or '6 GB'."""
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
    """Fields of a plan from 'name=value'; what is no JSON is taken as text."""
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"--set takes ITEM=VALUE, such as --set rotate=0; got '{item}'.")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def _wait(device: Any) -> None:
    """Until the first process has prepared the run."""
    if process_count() > 1:
        import torch.distributed as dist

        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def _tell_cases(prepared: PreparedRun, trainer: FinetuneTrainer) -> None:
    """How many cases there are for what."""
    text = f"Learning from {len(prepared.learned)} cases, measuring on {len(prepared.measured)}"
    if trainer.windows.cached < trainer.windows.count:
        text += (
            f"; {trainer.windows.cached} of those learned from fit into memory, the others are read each time"
        )
    note(text + (f"; going on after step {trainer.step}." if trainer.step else "."))


def _keep(trainer: FinetuneTrainer, output: Path, *, done: bool) -> None:
    """The best adapter under the name that was asked for, and where things are."""
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
