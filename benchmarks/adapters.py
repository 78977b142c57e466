"""Size and speed of every kind of adapter: python benchmarks/adapters.py [FOLDER --dataset NAME]

Prints parameters and file size on the embedded model, parameters on SAM's ViT-B (without allocating its
tensors), the time of an encoding relative to the model alone, and the time to switch adapters in a set. With
a FOLDER of labelled cases it also prints the time of a step of `medsam-app finetune`, alternating between the
kinds on the same windows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT

from medsam_app.adapters.adapter import COMPONENTS, Adapter
from medsam_app.adapters.adapter_set import AdapterSet
from medsam_app.adapters.attachment_points import find_attachment_points
from medsam_app.adapters.table import ADAPTER_KINDS, check_settings
from medsam_app.datasets.find import find_cases
from medsam_app.finetuning.plan import make_plan
from medsam_app.finetuning.trainer import FinetuneTrainer
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import Sam3D

RUNS = 7
#: Maximum number of cases, and window in voxels, for timing steps.
MOST_CASES, WINDOW = 4, (32, 48, 32)


def median_seconds(*runs: Callable[[], object]) -> list[float]:
    """Return the medians of alternating runs, so that other work on the machine affects all equally."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(RUNS):
        for run, seconds in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def vit_b_parameters(kind: str) -> int:
    """Return the number of parameters of an adapter with default settings on SAM's ViT-B."""
    with torch.device("meta"):
        encoder = ImageEncoderViT(embed_dim=768, depth=12, num_heads=12, use_rel_pos=True, window_size=14)
        component = COMPONENTS[kind](find_attachment_points(encoder), check_settings(kind, {}))
    return sum(parameter.numel() for parameter in component.parameters())


def sizes(model: Sam3D, folder: Path) -> None:
    print(f"{'kind':<12}{'sam3d_tiny':>12}{'file':>10}{'ViT-B':>12}{'file':>10}")
    for kind in ADAPTER_KINDS:
        adapter = Adapter.create(kind, model)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter) / 100)
        path = adapter.save(folder / f"{kind}.safetensors")
        tiny, vit_b = sum(parameter.numel() for parameter in adapter.parameters()), vit_b_parameters(kind)
        print(
            f"{kind:<12}{tiny:>12,}{path.stat().st_size / 1e6:>7.2f} MB{vit_b:>12,}{4 * vit_b / 1e6:>7.2f} MB"
        )


def speed(model: Sam3D, folder: Path) -> None:
    adapters = AdapterSet(model)
    for kind in ADAPTER_KINDS:
        adapters.load(folder / f"{kind}.safetensors")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *model.roi_shape, generator=generator)
    inside = torch.ones_like(image, dtype=torch.bool)

    def encode(kind: str | None) -> None:
        adapters.use(kind)
        with torch.inference_mode():
            model.encode_image(image, inside)

    encode(None)
    runs = [lambda kind=kind: encode(kind) for kind in (None, *ADAPTER_KINDS)]
    alone, *others = median_seconds(*runs)
    switching = median_seconds(*[lambda kind=kind: adapters.use(kind) for kind in (*ADAPTER_KINDS, None)])
    print(f"\nencoding without an adapter: {alone:.3f} s")
    for kind, seconds, switch in zip(ADAPTER_KINDS, others, switching, strict=False):
        print(f"{kind:<12}encoding x {seconds / alone:.2f}, switching to it {1000 * switch:.1f} ms")
    print(f"switching to the model alone {1000 * switching[-1]:.1f} ms")


def teaching(source: Path, dataset: str | None, folder: Path) -> None:
    cases = [case for case in find_cases(source).cases if dataset in (None, case.dataset)][:MOST_CASES]
    trainers = {}
    for kind in ADAPTER_KINDS:
        out = folder / kind
        out.mkdir()
        asked = {"adapter": kind, "labels": {1: "1"}, "spacing": 1.0, "window": WINDOW, "steps": 100}
        trainers[kind] = FinetuneTrainer(make_plan(asked), cases, [], out, torch.device("cpu"))
        trainers[kind].train_step()  # cases are read and cached
    times = median_seconds(*(trainer.train_step for trainer in trainers.values()))
    for kind, seconds in zip(ADAPTER_KINDS, times, strict=True):
        print(f"{kind:<12}a step of teaching {seconds:.2f} s, x {seconds / min(times):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--dataset")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_model()
    with tempfile.TemporaryDirectory() as folder:
        sizes(model, Path(folder))
        speed(model, Path(folder))
        if options.folder is not None:
            teaching(options.folder, options.dataset, Path(folder))


if __name__ == "__main__":
    main()
