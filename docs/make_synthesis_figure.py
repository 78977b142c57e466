"""Draw docs/images/synthesis.png: python docs/make_synthesis_figure.py --data FOLDER

One row per source of training windows, one window per seed, each as the slice in which the target is largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

from medsam_app.pretraining.windows import (
    HeadWindows,
    PseudoWindows,
    RealWindows,
    Source,
    SyntheticWindows,
    Window,
    load_cases,
)
from medsam_app.synthetic.sampler import Draws

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

#: Data sets whose licences (CC-BY-4.0, CC-BY-SA-4.0) allow a picture with attribution.
PICTURED = {"totalseg_mr", "msd_hippocampus"}


def sources(data: Path | None) -> dict[str, Source]:
    found: dict[str, Source] = {"synthetic": SyntheticWindows()}
    if data is not None:
        cases = [case for case in load_cases(data, "train") if case.dataset in PICTURED]
        found["heads"] = HeadWindows(sorted((data / "head_label_maps").glob("*.nii.gz"))[:4])
        found["pseudo"], found["real"] = PseudoWindows(cases), RealWindows(cases)
    return found


def show(axes: Axes, window: Window) -> None:
    """Draw the slice with the largest part of the target, and the target's outline."""
    areas = torch.stack([window.target.movedim(axis, 0).flatten(1).sum(1) for axis in range(3)])
    axis, at = divmod(int(areas.argmax()), areas.shape[1])
    image, valid, target = (
        values.select(axis, at).numpy() for values in (window.image, window.valid, window.target)
    )
    low, high = np.quantile(image[valid], (0.01, 0.99))
    image = np.where(valid, image, np.nan)
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
    axes.contour(target, levels=[0.5], colors="#ff7f0e", linewidths=0.8)
    axes.set_facecolor("#c5d3e0")  # outside the volume
    axes.set_xticks([])
    axes.set_yticks([])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with manifest.json; synthetic windows alone without"
    )
    parser.add_argument("--side", type=int, default=64, help="voxels a side")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="seed of the first column")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "synthesis.png")
    options = parser.parse_args()
    rows = sources(options.data)
    size = (1.25 * options.columns, 1.28 * len(rows))
    figure, panels = plt.subplots(len(rows), options.columns, figsize=size, squeeze=False)
    for row, (name, source) in zip(panels, rows.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for seed, axes in enumerate(row, start=options.first):
            show(axes, source.draw(Draws(seed), options.side))
    figure.subplots_adjust(0.02, 0, 1, 1, 0.02, 0.02)
    figure.savefig(options.out, dpi=72, metadata={"Software": None})
    print(f"Saved {options.out}")


if __name__ == "__main__":
    main()
