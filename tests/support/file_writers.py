"""Functions that write files of each kind that must not be lost.

`WRITERS` maps names to functions that take an existing folder, prepare the content, and return a function
that writes the file there. The returned function takes a size; larger sizes give larger files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from medsam_app import make_volume, save_mask
from medsam_app.adapters.adapter import Adapter
from medsam_app.atomic import save_whole
from medsam_app.batch.output import CaseResult, write_picture
from medsam_app.finetuning.baseline_trainer import BaselineTrainer
from medsam_app.io.volume import Volume
from medsam_app.models.download import install, sha256_of
from medsam_app.models.table import MODELS
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import Point
from medsam_app.session.case_zip import save_case
from medsam_app.session.session import Session
from medsam_app.training.checkpoint import write_state
from tests.support.adapter_backbones import CUBE

Write = Callable[[int], object]


def _noise(slices: int) -> Volume:
    array = np.random.default_rng(0).integers(0, 200, (30, 30, slices)).astype(np.float32)
    return make_volume("noise", array, np.eye(4))


def text(folder: Path) -> Write:
    return lambda size: save_whole(folder / "table.csv", "a row\n" * 100 * size)


def mask(folder: Path, name: str) -> Write:
    def write(size: int) -> None:
        volume = _noise(20 * size)
        save_mask(volume.array, volume, folder / name)

    return write


def adapter(folder: Path) -> Write:
    model = CUBE.make()
    return lambda size: Adapter.create("lora", model, rank=4 * size).save(folder / "liver.safetensors")


def state(folder: Path) -> Write:
    return lambda size: write_state(
        folder, {"net": {"weight": torch.full((1000 * size,), size)}}, {"step": size}, beside=["net"]
    )


def baseline(folder: Path) -> Write:
    plan = SimpleNamespace(model_dump_json=lambda: "{}")

    def write(size: int) -> None:
        trainer: Any = SimpleNamespace(
            name="unet", settings=plan, average={"weight": torch.ones(1000 * size)}
        )
        BaselineTrainer.keep(trainer, folder / "unet.safetensors")

    return write


def picture(folder: Path) -> Write:
    volume = _noise(30)
    job: Any = SimpleNamespace(case="a")

    def write(size: int) -> None:
        shown = volume if size > 1 else replace(volume, array=np.zeros_like(volume.array))
        write_picture(job, shown, CaseResult(np.zeros(volume.shape, np.uint8), []), folder)

    return write


def case(folder: Path) -> Write:
    session = Session(_noise(20), VolumePredictor(device="cpu", refine=False))
    session.add_object("ball")
    session.add_prompt("o1", Point(coordinates=(15, 15, 10)))
    random = np.random.default_rng(0)
    # The archive is much larger than any file in it, so that a size limit can apply to the archive alone.
    return lambda size: save_case(
        session, folder / "case.zip", name="case", screenshot=random.bytes(20_000 + 100 * size)
    )


def download(folder: Path) -> Write:
    """Return a writer for downloads; `install` writes in the same way and needs no server."""
    os.environ["MEDSAM_APP_HOME"] = str(folder)
    files = [folder.with_name(f"{folder.name}-{size}.pth") for size in (1, 2)]
    for size, file in enumerate(files, start=1):
        file.write_bytes(np.random.default_rng(size).bytes(100_000 * size))

    def write(size: int) -> None:
        file, entry = files[size - 1], MODELS["sam_vit_b"]
        facts = {"size": file.stat().st_size, "sha256": sha256_of(file)}
        install(replace(entry, checkpoint=replace(entry.checkpoint, **facts)), file)

    return write


WRITERS: dict[str, Callable[[Path], Write]] = {
    "text": text,
    "mask.nii": lambda folder: mask(folder, "mask.nii"),
    "mask.nii.gz": lambda folder: mask(folder, "mask.nii.gz"),
    "mask.mhd": lambda folder: mask(folder, "mask.mhd"),
    "adapter": adapter,
    "state": state,
    "baseline": baseline,
    "picture": picture,
    "case": case,
    "download": download,
}
