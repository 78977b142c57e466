"""Preparation of a fine-tuning run, stored in its folder and read again on resumption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.atomic import DRAFTS, save_whole
from medsam_app.commands.finetune_options import FinetuneOptions
from medsam_app.commands.plan_table import show_plan
from medsam_app.console import note, progress_bar
from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import Dataset, find_cases
from medsam_app.datasets.fingerprint import fingerprint
from medsam_app.datasets.fingerprint_file import read_fingerprint, save_fingerprint
from medsam_app.errors import ModelError, SaveError, SettingsError
from medsam_app.finetuning.plan import Plan, read_plan
from medsam_app.finetuning.planning import plan_for
from medsam_app.finetuning.preflight import fit, unmeasured
from medsam_app.finetuning.split import restrict_dataset, split_cases, trainable_cases
from medsam_app.predict.baseline_file import BASELINE_NETS
from medsam_app.system import format_bytes
from medsam_app.training.processes import process_count

if TYPE_CHECKING:  # heavy
    import torch

#: In the folder of a run: its plan, the fingerprint of the dataset, and the memory estimate.
PLAN, FINGERPRINT, MEMORY = "plan.json", "fingerprint.json", "memory.json"
#: Files that a run writes into its folder, and that a new run in this folder removes.
_RUN_FILES = (
    PLAN, FINGERPRINT, MEMORY, "scores.json", "*.jsonl", "*.safetensors", DRAFTS,
    "tensorboard/events.*", *(f"{name}/*" for name in BASELINE_NETS),
)  # fmt: skip
#: Split used for training if the dataset has it.
SPLIT = "train"


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        plan: plan of the run.
        dataset: all cases of the run.
        learned: cases to train on.
        measured: held-out cases.
        caches: maximum size of a process's case cache in bytes.
    """

    plan: Plan
    dataset: Dataset
    learned: list[Case]
    measured: list[Case]
    caches: int


def prepare(options: FinetuneOptions, device: torch.device) -> None:
    """Read the dataset, resolve the plan, fit it into memory, print it, and write it into the run's folder.

    Raises:
        MedsamError: the dataset and the options allow no run, or it does not fit into memory.
    """
    fields, out = dict(options.fields), options.run_folder
    dataset = find_cases(options.dataset)
    splits = {case.split for case in dataset.cases}
    if "split" not in fields and SPLIT in splits:
        fields["split"] = SPLIT
    selection = {"split": fields.get("split"), "datasets": fields.get("datasets", ())}
    dataset = restrict_dataset(dataset, **selection, most=fields.get("most_cases"))
    with progress_bar("Reading the dataset") as (progress, _):
        dataset_fingerprint = fingerprint(dataset, progress=progress)
    resolved = plan_for(dataset_fingerprint, **fields)
    learned, _ = split_cases(
        trainable_cases(dataset.cases, dataset_fingerprint, resolved.plan), resolved.plan
    )
    machine: dict[str, Any] = {"memory": options.memory, "device": device, "processes": process_count()}
    if options.preflight:
        with progress_bar("Trying a step") as (progress, _):
            fitted = fit(
                resolved.plan, learned, weights=options.weights, fixed=fields, progress=progress, **machine
            )
    else:
        fitted = unmeasured(resolved.plan, learned, **machine)
    changed = [
        name for name in Plan.model_fields if getattr(fitted.plan, name) != getattr(resolved.plan, name)
    ]
    resolved = replace(
        resolved, plan=fitted.plan, reasons=resolved.reasons | dict.fromkeys(changed, "to fit into memory")
    )
    show_plan(resolved)
    if fitted.predicted:
        note(
            f"Memory: {format_bytes(fitted.predicted)} of {format_bytes(fitted.available)} a process, of "
            f"which up to {format_bytes(fitted.caches)} for cached cases."
        )
    for sentence in fitted.notes:
        note(sentence)
    if options.dry_run:
        return
    try:
        out.mkdir(exist_ok=True)
        for pattern in _RUN_FILES:
            for file in out.glob(pattern):
                if file.match(DRAFTS):  # from a run that was killed
                    shutil.rmtree(file)
                else:
                    file.unlink()
    except OSError as error:
        raise SaveError(f"{out} cannot be the folder of a run ({error.strerror}); give another -o.") from None
    save_fingerprint(out / FINGERPRINT, dataset_fingerprint)
    save_whole(out / MEMORY, json.dumps({"predicted": fitted.predicted, "caches": fitted.caches}) + "\n")
    # Write the plan last; a folder counts as a run only once the plan exists.
    save_whole(out / PLAN, resolved.plan.text())


def prepared_run(path: Path, out: Path, fields: Mapping[str, Any]) -> PreparedRun:
    """Read the run that `prepare` wrote.

    Args:
        path: the dataset.
        out: folder of the run.
        fields: fields of the plan that the user set.

    Raises:
        MedsamError: a file cannot be read, or does not match the dataset or the fields.
    """
    plan, dataset_fingerprint = read_plan(out / PLAN), read_fingerprint(out / FINGERPRINT)
    stored = plan.model_dump(mode="json")
    for name, value in fields.items():
        if name == "labels":
            if set(map(str, value)) - {str(v) for v in plan.labels} - set(plan.labels.values()):
                raise _other_plan(out, f"labels: {', '.join(plan.labels.values())}")
        elif stored[name] != json.loads(json.dumps(value)):
            raise _other_plan(out, f"{name}: {stored[name]}, here {value}")
    if dataset_fingerprint.path != str(path):
        raise _other_plan(out, f"dataset: {dataset_fingerprint.path}, here {path}")
    dataset = restrict_dataset(
        find_cases(path), split=plan.split, datasets=plan.datasets, most=plan.most_cases
    )
    usable = trainable_cases(dataset.cases, dataset_fingerprint, plan)
    learned, measured = split_cases(usable, plan)
    try:
        caches = int(json.loads((out / MEMORY).read_text())["caches"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"The folder {out} is not as a run leaves it ({MEMORY}); give another -o, or --overwrite to "
            "start anew."
        ) from None
    return PreparedRun(plan, replace(dataset, cases=tuple(usable)), learned, measured, caches)


def _other_plan(out: Path, difference: str) -> SettingsError:
    return SettingsError(
        f"The folder {out} holds a run of another plan ({difference}); give another -o, or --overwrite "
        "to start anew."
    )
