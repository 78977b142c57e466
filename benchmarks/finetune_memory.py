"""Measured and predicted memory of fine-tuning: python benchmarks/finetune_memory.py FOLDER --steps 100

The plan is fitted to the memory as by `medsam-app finetune`. Then `--steps` real steps run in this process,
with random numbers of rounds. It prints the predicted and the measured peak of the complete process, each
step at which the peak grew, and the mean loss of the first and the last tenth of the steps.

FOLDER is a dataset. `--random-weights` replaces SAM's checkpoint by random weights of the same shapes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from segment_anything import sam_model_registry

from medsam_app.datasets.find import find_cases
from medsam_app.finetuning.memory_probe import peak
from medsam_app.finetuning.plan import Plan, make_plan
from medsam_app.finetuning.preflight import FittedPlan, fit
from medsam_app.finetuning.trainer import FinetuneTrainer
from medsam_app.models.load import choose_device
from medsam_app.models.table import model_entry
from medsam_app.system import format_bytes


def stand_in(base: str, folder: Path) -> Path:
    """Write a checkpoint in SAM's format for this base, with random weights."""
    torch.manual_seed(0)
    path = folder / "random.pth"
    torch.save(sam_model_registry[model_entry(base).arch]().state_dict(), path)
    return path


def initial_plan(options: argparse.Namespace) -> Plan:
    """Return the plan before it is fitted to the memory."""
    plan = {"base": options.base, "adapter": options.adapter, "spacing": options.spacing}
    plan |= {"window": (options.side,) * 3}
    plan |= {"labels": {value: f"label {value}" for value in options.labels}}
    plan |= {"steps": options.steps, "batch": options.batch}
    plan |= {"checkpointing": options.checkpointing, "cached": options.cached}
    return make_plan(plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="sam3d_tiny")
    parser.add_argument("--adapter", default="spatial", help="kind")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path)
    weights.add_argument("--random-weights", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=64, help="voxels along each axis of a window")
    parser.add_argument("--spacing", type=float, default=1.0, help="mm")
    parser.add_argument("--labels", type=int, nargs="+", default=[1], help="values")
    parser.add_argument("--memory", type=float, help="GB; most of what is free by default")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device, _ = choose_device(options.device)
    cases = list(find_cases(options.folder).cases)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = stand_in(options.base, folder) if options.random_weights else options.weights
        memory = None if options.memory is None else int(options.memory * 1e9)
        begin = time.monotonic()
        found = fit(initial_plan(options), cases, memory=memory, device=device, weights=file)
        print(f"{time.monotonic() - begin:.0f} s to try; {' '.join(found.notes) or 'the plan is as it was'}")
        teach(found, cases, folder / "run", device, file, options.steps)


def teach(
    found: FittedPlan, cases: list, out: Path, device: torch.device, file: Path | None, steps: int
) -> None:
    """Run the steps and print their memory."""
    out.mkdir()
    trainer = FinetuneTrainer(found.plan, cases, [], out, device, weights=file, memory=found.caches)
    losses: list[float] = []
    begin, highest = time.monotonic(), 0
    for step in range(1, steps + 1):
        losses.append(trainer.train_step()["loss"])
        if (now := peak(str(device))) > highest * 1.01:
            highest = now
            print(
                f"step {step}: {format_bytes(now)} at most, {(time.monotonic() - begin) / step:.1f} s a step"
            )
    tenth = max(1, steps // 10)
    measured = peak(str(device))
    print(f"{steps} steps in {time.monotonic() - begin:.0f} s")
    print(f"predicted {format_bytes(found.predicted)}, measured {format_bytes(measured)}, ", end="")
    print(f"ratio {found.predicted / measured:.3f}")
    print(f"loss {sum(losses[:tenth]) / tenth:.4f} at first, {sum(losses[-tenth:]) / tenth:.4f} at last")


if __name__ == "__main__":
    main()
