"""Median latency of clicks in a full-size CT: python benchmarks/click_latency.py

First click: the window is read, encoded and decoded, and enlarged or narrowed if the mask requires it. Next
click: the embedding is cached. Fine outline: the same click again, refined in tiles. The last line is the
ratio of the first to the next click.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from medsam_app.grid.patch import box_slices
from medsam_app.io.volume import Volume
from medsam_app.predict.predictor import VolumePredictor


def ct(shape: tuple[int, int, int]) -> tuple[Volume, list[tuple[int, int, int]]]:
    """Return a CT-sized volume of noise with bright balls, and the centres of the balls."""
    rng = np.random.default_rng(0)
    array = rng.integers(-60, 60, size=shape, dtype=np.int16)
    spacing = np.array([0.8, 0.8, 1.0])
    centres = []
    for number in range(8):
        corner = (number & 1, number >> 1 & 1, number >> 2 & 1)
        centre = np.array([n // 4 + c * n // 2 for n, c in zip(shape, corner, strict=True)])
        radius = 12 + 2 * number  # mm
        reach = np.ceil(radius / spacing).astype(int)
        box = box_slices(centre - reach, centre + reach + 1)
        lines = np.meshgrid(
            *[np.arange(-r, r + 1) * s for r, s in zip(reach, spacing, strict=True)], indexing="ij"
        )
        array[box] += (sum(line**2 for line in lines) < radius**2).astype(np.int16) * 200
        centres.append(tuple(int(c) for c in centre))
    return Volume.from_array(array, np.diag([-0.8, -0.8, 1.0, 1.0])), centres  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    volume, centres = ct(tuple(options.shape))
    predictor = VolumePredictor(device=options.device, refine=False)  # as in the browser
    predictor.set_volume(volume)
    predictor.predict(points=[centres[0]])  # warm up
    first, following, tiled, encodings = [], [], [], []
    for centre in centres[1:]:
        inside = [centre[0] + 4, centre[1], centre[2]]
        outside = [centre[0] + 45, centre[1], centre[2]]
        start = time.perf_counter()
        prediction = predictor.predict(points=[centre])
        first.append(time.perf_counter() - start)
        encodings.append(prediction.encoded)
        points = [centre]
        for point in (inside, outside):
            points.append(point)
            start = time.perf_counter()
            prediction = predictor.predict(points=points, point_labels=[1, 1, 0][: len(points)])
            if prediction.encoded == 0:
                following.append(time.perf_counter() - start)
        start = time.perf_counter()
        predictor.predict(points=points, point_labels=[1, 1, 0], refine=True)
        tiled.append(time.perf_counter() - start)
    a, b = statistics.median(first), statistics.median(following)
    print(
        f"volume {tuple(options.shape)}, {predictor.model.device}, {predictor.model.amp_dtype or 'float32'}"
    )
    print(
        f"first click  {a:.3f} s  (median of {len(first)}; {statistics.mean(encodings):.1f} windows encoded)"
    )
    print(f"next click   {b:.3f} s  (median of {len(following)})")
    print(f"fine outline {statistics.median(tiled):.3f} s  (median of {len(tiled)}; tiles, where asked for)")
    print(f"first / next {a / b:.1f}")


if __name__ == "__main__":
    main()
