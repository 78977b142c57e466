"""Time and Dice of a scribble, compared with its clicks one by one: `python benchmarks/scribble.py`.

On every organ of the bundled sample, a line is drawn through the middle of its largest slice.
"""

from __future__ import annotations

import time

import numpy as np

from medsam_app.grid.masks import dice
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import Scribble
from medsam_app.synthetic.torso import torso_phantom


def line_through(region: np.ndarray) -> Scribble:
    """Return the longer of two lines across the largest slice, through the middle of its longest row."""
    k = int(region.sum(axis=(0, 1)).argmax())
    flat = region[:, :, k]
    along = max((0, 1), key=lambda axis: int(flat.sum(axis=axis).max()))
    fixed = int(flat.sum(axis=along).argmax())
    inside = np.flatnonzero(flat.take(fixed, axis=1 - along))
    runs = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
    run = max(runs, key=len)
    ends = (int(run[0]) + 2, int(run[-1]) - 2)
    places = [(at, fixed, k) if along == 0 else (fixed, at, k) for at in ends]
    return Scribble(coordinates=tuple((float(i), float(j), float(k)) for i, j, k in places))


def main() -> None:
    volume, labels, names = torso_phantom()
    predictor = VolumePredictor(device="cpu", refine=False)
    print(
        "| organ | clicks | scribble: windows, s, Dice | one by one: windows, s, Dice | first click: Dice |"
    )
    print("|---|---|---|---|---|")
    scores = []
    for value, name in sorted(names.items()):
        region = np.asarray(labels) == value
        if region.sum() < 500:
            continue
        line = line_through(region)
        row = []
        for prompts in ([line], list(line.clicks()), list(line.clicks()[:1])):
            predictor.set_volume(volume)
            predictor.cache.clear()
            began, windows = time.perf_counter(), 0
            for end in range(1, len(prompts) + 1):
                made = predictor.predict_prompts(prompts[:end])
                windows += made.encoded
            seconds = time.perf_counter() - began
            row.append((windows, seconds, dice(made.mask, region)))
        (a, b, c), (d, e, f), (_, _, h) = row
        scores.append((b, c, e, f))
        count = len(line.clicks())
        print(f"| {name} | {count} | {a}, {b:.1f}, {c:.3f} | {d}, {e:.1f}, {f:.3f} | {h:.3f} |", flush=True)
    b, c, e, f = np.mean(scores, axis=0)
    print(f"| mean |  | {b:.1f} s, {c:.3f} | {e:.1f} s, {f:.3f} |  |")


if __name__ == "__main__":
    main()
