"""Small dataset for fine-tuning: two balls whose labels are learned in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import find_cases
from medsam_app.finetuning.plan import Plan, make_plan
from tests.support.evaluation_data import two_balls
from tests.support.labelled_folders import save, save_json

LABELS = {1: "larger ball", 2: "smaller ball"}


def write_balls(folder: Path, *, cases: int = 4) -> Path:
    """Write a folder in the layout of the Decathlon."""
    entries = []
    for n in range(cases):
        image, labels, affine = two_balls(n)
        save(folder / f"imagesTr/balls_{n}.nii.gz", image, affine)
        save(folder / f"labelsTr/balls_{n}.nii.gz", labels * (labels < 3), affine)
        entries.append({key: f"./{key}sTr/balls_{n}.nii.gz" for key in ("image", "label")})
    names = {"0": "background"} | {str(value): name for value, name in LABELS.items()}
    described = {"name": "Balls", "modality": {"0": "MRI"}, "labels": names, "training": entries}
    save_json(folder / "dataset.json", described)
    return folder


def ball_cases(folder: Path, *, cases: int = 4) -> list[Case]:
    """Write such a folder and return its cases."""
    return list(find_cases(write_balls(folder, cases=cases)).cases)


def small_plan(**fields: Any) -> Plan:
    """Return a plan of few small steps."""
    plan = {"labels": LABELS, "spacing": 2.0, "window": (16, 16, 16), "steps": 4, "batch": 2, "held_out": 0.3}
    return make_plan(plan | fields)
