"""Slice mode compared with the package's SamPredictor, as ratios: python benchmarks/slices.py

Both have the same random weights and the same slice. Times are medians of alternating runs in one process:
wall time, and processor time, which other work on the machine disturbs less. Peak memory is measured in a
separate process each, in addition to the memory of the model.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medsam_app.models.slices.sam2d import ARCHITECTURES, build_slice_model
from medsam_app.models.slices.sam_package import sam_parts

SetImage = Callable[[np.ndarray], None]
Predict = Callable[[], np.ndarray]
POINTS, LABELS, BOX = [[200.0, 240.0], [330.0, 250.0]], [1, 0], [120.0, 100.0, 400.0, 380.0]  # (row, column)


@cache
def weights(arch: str) -> dict[str, torch.Tensor]:
    """Return random weights for which positions have an effect, and masks are neither empty nor full."""
    torch.manual_seed(0)
    model = build_slice_model("sam", arch)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.1)
        elif "output_hypernetworks" in name and name.endswith("layers.2.weight"):
            nn.init.normal_(parameter, std=1.0)
    return model.state_dict()


def package_side(arch: str, device: str) -> tuple[SetImage, Predict]:
    """Return set_image and predict of the package; predict returns (H, W) logits."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    sam = Sam(*sam_parts(1024, ARCHITECTURES[arch])).eval()
    sam.load_state_dict(weights(arch))
    sam.to(device)
    predictor = SamPredictor(sam)

    def predict() -> np.ndarray:
        points, box = np.array(POINTS)[:, ::-1], np.array(BOX)[[1, 0, 3, 2]]
        return predictor.predict(points, np.array(LABELS), box, multimask_output=False, return_logits=True)[
            0
        ][0]

    return lambda grey: predictor.set_image(np.repeat(grey[..., None], 3, axis=2)), predict


def own_side(arch: str, device: str) -> tuple[SetImage, Predict]:
    """Return set_image and predict of slice mode."""
    model = build_slice_model("sam", arch)
    model.load_state_dict(weights(arch))
    model.to(device)
    state: dict[str, Any] = {}

    def set_image(grey: np.ndarray) -> None:
        state["slice"] = model.encode_slice(grey, window=(0, 255))

    def predict() -> np.ndarray:
        return (
            model.decode_slice(state["slice"], points=POINTS, labels=LABELS, box=BOX).logits[0].cpu().numpy()
        )

    return set_image, predict


SIDES = {"package": package_side, "own": own_side}


def slice_of_noise() -> np.ndarray:
    """Return (H, W) grey values: bright discs in noise."""
    rows, columns = np.indices((512, 480))
    discs = sum(120.0 * ((rows - r) ** 2 + (columns - c) ** 2 < 60**2) for r, c in ((220, 240), (350, 120)))
    return np.clip(discs + np.random.default_rng(0).normal(60, 20, rows.shape), 0, 255).astype(np.uint8)


def peak_memory(side: str, arch: str, device: str) -> float:
    """Return the peak memory of set_image in MB, without the model, measured in this process."""
    set_image, _ = SIDES[side](arch, device)
    with torch.inference_mode():
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            set_image(slice_of_noise())
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        before = _resident()
        set_image(slice_of_noise())
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def seconds(run: Callable[[], object], device: str) -> tuple[float, float]:
    """Return the wall time and the processor time of a run."""
    start, cpu_start = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", choices=ARCHITECTURES, default="vit_b")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(peak_memory(options.memory_of, options.arch, options.device))
        return

    memory = []
    for side in SIDES:
        command = [sys.executable, __file__, "--arch", options.arch, "--device", options.device]
        run = subprocess.run([*command, "--memory-of", side], capture_output=True, text=True, check=True)
        memory.append(float(run.stdout))

    sides = {side: build(options.arch, options.device) for side, build in SIDES.items()}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    grey, logits = slice_of_noise(), {}
    with torch.inference_mode():
        for _ in range(options.runs + 1):  # the first run warms up
            for side, (set_image, predict) in sides.items():
                for name, action in (("set_image", partial(set_image, grey)), ("predict", predict)):
                    times.setdefault((name, side), []).append(seconds(action, options.device))
                logits[side] = predict()
    print(f"{options.arch} on {options.device}, float32, {torch.get_num_threads()} threads: package -> own")
    for name in ("set_image", "predict"):
        for kind, clock in enumerate(("by the clock", "of the processor")):
            a, b = (statistics.median(value[kind] for value in times[name, side][1:]) for side in SIDES)
            print(f"{name:9}  {a:7.3f} s -> {b:7.3f} s {clock}, ratio {a / b:.2f}")
    print(f"set_image  {memory[0]:.0f} MB -> {memory[1]:.0f} MB at most, ratio {memory[0] / memory[1]:.1f}")
    package_mask, own_mask = (value > 0 for value in logits.values())
    print(
        f"logits differ by {np.abs(logits['package'] - logits['own']).max():.1e} at most, of up to "
        f"{np.abs(logits['package']).max():.1f}; the masks, {package_mask.mean():.0%} of the slice, in "
        f"{int((package_mask != own_mask).sum())} of {package_mask.size} pixels"
    )


if __name__ == "__main__":
    main()
