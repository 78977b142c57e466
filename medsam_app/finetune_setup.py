"""What a finetuning run is about, settled before it starts and found again when it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsam_app.cases import Case
from medsam_app.datasets import Dataset, find_cases
from medsam_app.errors import SaveError, SettingsError
from medsam_app.fingerprint import fingerprint
from medsam_app.fingerprint_file import read_fingerprint, save_fingerprint
from medsam_app.plan import Plan, read_plan
from medsam_app.plan_cases import chosen, split_cases, teachable
from medsam_app.plan_table import show_plan
from medsam_app.planning import plan_for
from medsam_app.reporting import watched
from medsam_app.whole_file import save_whole

#: In the folder of a run: its plan, and what the dataset is like.
PLAN, FINGERPRINT = "plan.json", "fingerprint.json"
#: Networks that can be taught beside, see `medsam_app.rival_net`.
RIVALS = ("unet", "swin_unetr")
#: What a run leaves in its folder, and a new one there takes away.
_RUN_FILES = (
    PLAN, FINGERPRINT, "state.json", "scores.json", "*.jsonl", "*.safetensors", "*.tmp",
    "tensorboard/events.*", *(f"{name}/*" for name in RIVALS),
)  # fmt: skip
#: The split that is learned from where a dataset has one of that name.
SPLIT = "train"


@dataclass(frozen=True)
class Ready:
    """A run that can begin.

    Attributes:
        dataset: the cases that it is about.
        learned, measured: those that are taught on, and those that are kept apart.
    """

    plan: Plan
    dataset: Dataset
    learned: list[Case]
    measured: list[Case]


def prepare(
    path: Path,
    out: Path,
    asked: dict[str, Any],
    budget: float,
    weights: Path | None,
    *,
    device: Any,
    dry_run: bool,
) -> None:
    """Read the dataset, settle the plan, show it, and write both into the folder of the run."""

    dataset = find_cases(path)
    splits = {case.split for case in dataset.cases}
    if "split" not in asked and SPLIT in splits:
        asked = asked | {"split": SPLIT}
    dataset = chosen(dataset, split=asked.get("split"), datasets=asked.get("datasets", ()))
    with watched("Reading the dataset") as (progress, _):
        found = fingerprint(dataset, progress=progress)
    settled = plan_for(found, **asked)
    show_plan(settled)
    if dry_run:
        return
    try:
        out.mkdir(exist_ok=True)
        for pattern in _RUN_FILES:
            for file in out.glob(pattern):
                file.unlink()
    except OSError as error:
        raise SaveError(f"{out} cannot be the folder of a run ({error.strerror}); give another -o.") from None
    save_fingerprint(out / FINGERPRINT, found)
    # Last: a folder without a plan holds no run.
    save_whole(out / PLAN, settled.plan.text())


def ready_run(path: Path, out: Path, asked: Mapping[str, Any]) -> Ready:
    """The run as it was prepared, which what is asked for must agree with."""

    plan, found = read_plan(out / PLAN), read_fingerprint(out / FINGERPRINT)
    held = plan.model_dump(mode="json")
    for name, value in asked.items():
        if name == "labels":
            if set(map(str, value)) - {str(v) for v in plan.labels} - set(plan.labels.values()):
                raise _other(out, f"labels: {', '.join(plan.labels.values())}")
        elif held[name] != json.loads(json.dumps(value)):
            raise _other(out, f"{name}: {held[name]}, here {value}")
    if found.path != str(path):
        raise _other(out, f"dataset: {found.path}, here {path}")
    dataset = chosen(find_cases(path), split=plan.split, datasets=plan.datasets)
    usable = teachable(dataset.cases, found, plan)
    learned, measured = split_cases(usable, plan)
    return Ready(plan, replace(dataset, cases=tuple(usable)), learned, measured)


def _other(out: Path, what: str) -> SettingsError:
    return SettingsError(
        f"The folder {out} holds a run of another plan ({what}); give another -o, or --overwrite to start "
        "anew."
    )
