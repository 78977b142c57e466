"""Draw docs/images/backbone.png: python docs/make_backbone_figure.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INK, SOFT, FROZEN, TRAINED, CLICK = "#1f2933", "#8795a1", "#d5e3f0", "#fbe3c0", "#d8efd9"


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec=INK, lw=1
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.1})
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1)
        axes.text(*middle, text, ha="center", va="bottom", fontsize=7.5, color=SOFT)


def path_of_a_window(axes: Axes) -> None:
    """Draw the upper half: steps that run once per window, and steps that run for every click."""
    axes.set_xlim(0, 13.2)
    axes.set_ylim(-0.35, 4.6)
    box(axes, 0.1, 2.7, 1.5, 1.2, "window\n128 x 128 x 128\nvoxels", "white")
    box(axes, 2.3, 2.7, 1.8, 1.2, "folded embedding\n6 x 6 x 6, stride 4\n(SAM's patches)", FROZEN)
    box(axes, 4.9, 2.7, 2.5, 1.2, "SAM's blocks\nin cubic windows of 8\n32 x 32 x 32 tokens", FROZEN)
    box(axes, 5.05, 4.0, 2.2, 0.45, "adapters, from outside", TRAINED)
    box(axes, 8.2, 2.7, 1.6, 1.2, "neck: four levels\nat strides\n4, 8, 16", TRAINED)
    box(axes, 10.6, 2.7, 1.6, 1.2, "embedding\n(remembered)", "white")
    for start, end in ((1.65, 2.25), (4.15, 4.85), (7.45, 8.15), (9.85, 10.55)):
        arrow(axes, (start, 3.3), (end, 3.3))
    box(axes, 0.1, 0.5, 2.4, 1.2, "prompts\npoints +/-, boxes,\nprevious mask", "white")
    box(
        axes,
        3.3,
        0.5,
        3.0,
        1.2,
        "prompt maps, random walker,\ntokens; two-way attention\nat half resolution",
        CLICK,
    )
    box(axes, 7.1, 0.5, 2.3, 1.2, "sharpen: sub-voxel\ndetail from the image", CLICK)
    box(axes, 10.2, 0.5, 2.4, 1.2, "three masks and\ntheir quality", "white")
    for start, end in ((2.55, 3.25), (6.35, 7.05), (9.45, 10.15)):
        arrow(axes, (start, 1.1), (end, 1.1))
    arrow(axes, (11.4, 2.65), (5.2, 1.75))
    axes.text(12.3, 3.3, "once a\nwindow", fontsize=9, color=SOFT, va="center")
    axes.text(0.1, 0.1, "every click", fontsize=9, color=SOFT, va="center")
    for x, colour, text in (
        (2.0, FROZEN, "SAM's weights"),
        (4.3, TRAINED, "taught"),
        (5.9, CLICK, "light decoder"),
    ):
        axes.add_patch(Rectangle((x, -0.25), 0.3, 0.2, fc=colour, ec=INK, lw=0.8))
        axes.text(x + 0.4, -0.15, text, fontsize=8, va="center", color=INK)
    axes.axis("off")


def shifted_windows(axes: Axes) -> None:
    """Draw the lower left: windows on a plane of tokens, unshifted and shifted by half their side."""
    axes.set_title("windows of 8 tokens, every other block shifted by 4", fontsize=9, color=INK)
    for n in range(5):
        axes.plot([n * 8, n * 8], [0, 32], color=SOFT, lw=1)
        axes.plot([0, 32], [n * 8, n * 8], color=SOFT, lw=1)
    for n in range(4):
        axes.plot([n * 8 + 4] * 2, [0, 32], color="#c05621", lw=1, ls="--")
        axes.plot([0, 32], [n * 8 + 4] * 2, color="#c05621", lw=1, ls="--")
    for corner in ((0, 0), (28, 0), (0, 28), (28, 28)):
        axes.add_patch(Rectangle(corner, 4, 4, fc="#f6ad55", alpha=0.7))
    axes.text(
        16,
        -2.6,
        "the four corners share a shifted window\nand must not see each other",
        ha="center",
        va="top",
        fontsize=8,
    )
    axes.set_aspect("equal")
    axes.axis("off")


def wide_queries(axes: Axes) -> None:
    """Draw the lower right: the relative position bias as part of the product of queries and keys."""
    axes.set_title("relative positions without a matrix of biases", fontsize=9, color=INK)
    parts = (
        (0, 6.4, "q / 8", FROZEN),
        (6.4, 0.8, "h", TRAINED),
        (7.2, 0.8, "w", TRAINED),
        (8.0, 0.8, "d", TRAINED),
    )
    for x, width, text, colour in parts:
        axes.add_patch(Rectangle((x, 2.2), width, 0.7, fc=colour, ec=INK, lw=1))
        axes.text(x + width / 2, 2.55, text, ha="center", va="center", fontsize=9)
    keys = (
        (0, 6.4, "k", FROZEN),
        (6.4, 0.8, "1-hot", "white"),
        (7.2, 0.8, "1-hot", "white"),
        (8.0, 0.8, "1-hot", "white"),
    )
    for x, width, text, colour in keys:
        axes.add_patch(Rectangle((x, 0.8), width, 0.7, fc=colour, ec=INK, lw=1))
        axes.text(x + width / 2, 1.15, text, ha="center", va="center", fontsize=9 if text == "k" else 6.5)
    axes.text(4.4, 1.85, "dot product = score + bias of each axis", ha="center", va="center", fontsize=8.5)
    axes.text(
        4.4,
        0.25,
        "64 columns and 8 for each axis; h, w, d are q against the table's rows for\n"
        "the 8 places a key may have, lowered by 100 for the other end of the volume",
        ha="center",
        va="top",
        fontsize=8,
    )
    axes.set_xlim(-0.3, 9.1)
    axes.set_ylim(-0.9, 3.2)
    axes.axis("off")


def main() -> None:
    figure = plt.figure(figsize=(11, 7.2))
    grid = figure.add_gridspec(2, 2, height_ratios=[1.35, 1], hspace=0.12)
    path_of_a_window(figure.add_subplot(grid[0, :]))
    shifted_windows(figure.add_subplot(grid[1, 0]))
    wide_queries(figure.add_subplot(grid[1, 1]))
    target = Path(__file__).parent / "images" / "backbone.png"
    figure.savefig(target, dpi=110, bbox_inches="tight", metadata={"Software": None})
    print(f"Saved {target}")


if __name__ == "__main__":
    main()
