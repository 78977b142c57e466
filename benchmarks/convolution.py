"""Time saved by oneDNN for the convolutions of one window: python benchmarks/convolution.py

Encodes and decodes a window with torch's choice of routine and with `layers.Conv3d`, in alternation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from medsam_app.models.layers import Conv3d
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import RoiPrompts

#: Number of runs of each; the first is a warm-up.
RUNS = 9


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    model = load_model()
    own_forward = Conv3d._conv_forward
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, *model.roi_shape, generator=generator)
    inside = torch.ones_like(image, dtype=torch.bool)
    prompts = RoiPrompts(torch.full((1, 1, 3), 32.0), torch.ones(1, 1, dtype=torch.int64))
    with torch.inference_mode():
        embedding = model.encode_image(image, inside)
        runs = {
            "encode": lambda: model.encode_image(image, inside),
            "decode": lambda: model.decode(embedding, prompts),
        }
        for name, run in runs.items():
            times: dict[str, list[float]] = {"torch": [], "own": []}
            for _ in range(RUNS):
                for kind, forward in (("torch", nn.Conv3d._conv_forward), ("own", own_forward)):
                    Conv3d._conv_forward = forward  # type: ignore[method-assign]
                    times[kind].append(seconds(run))
            a, b = (statistics.median(times[kind][1:]) for kind in ("torch", "own"))
            print(f"{name}: {a:.3f} s -> {b:.3f} s, ratio {a / b:.2f}")


if __name__ == "__main__":
    main()
