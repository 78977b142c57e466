"""Effect of torch.compile on the embedded model: python benchmarks/compiled.py

Prints the time of compilation and the medians of encoding and decoding, eager and compiled in alternation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from medsam_app.models.load import load_model
from medsam_app.models.prompt_encoder import RoiPrompts


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    model = load_model()
    shape = model.roi_shape
    image = torch.randn(1, 1, *shape)
    valid = torch.ones_like(image, dtype=torch.bool)
    prompts = RoiPrompts(
        torch.full((1, 1, 3), 30.0), torch.ones(1, 1, dtype=torch.long), mask=torch.rand_like(image)
    )
    encoder, decoder = (
        torch.compile(model.encoder, dynamic=False),
        torch.compile(model.decoder, dynamic=False),
    )
    with torch.inference_mode():
        embedding = model.encoder(image, valid)
        first = seconds(lambda: encoder(image, valid)) + seconds(lambda: decoder(embedding, prompts))
        print(f"compiling took {first:.0f} s")
        for name, eager, compiled in (
            ("encode", lambda: model.encoder(image, valid), lambda: encoder(image, valid)),
            ("decode", lambda: model.decoder(embedding, prompts), lambda: decoder(embedding, prompts)),
        ):
            measured: tuple[list[float], list[float]] = ([], [])
            for _ in range(7):
                for run, times in zip((eager, compiled), measured, strict=True):
                    times.append(seconds(run))
            a, b = (median(times) for times in measured)
            print(f"{name}: eager {a:.3f} s, compiled {b:.3f} s, x {a / b:.2f}")


if __name__ == "__main__":
    main()
