"""Figures of a report as PNG (Dice by click, cases, pictures), drawn with matplotlib."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_app.errors import SettingsError
from medsam_app.evaluate.bootstrap import Mean, draw, generator
from medsam_app.evaluate.gallery import Picture, case_dice
from medsam_app.evaluate.reliability import Reliability
from medsam_app.evaluate.summary import case_of, objects_by_method
from medsam_app.evaluate.tables import count_name
from medsam_app.measure.scores import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of the outlines of the truth and of a mask, on grey.
TRUTH, MASK = "#3cdc5a", "#ff9628"
#: Distinguishable with colour vision deficiency (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DPI = 130
_GREY = "#555555"


def check_matplotlib() -> None:
    """Reject a report without matplotlib before the measurement starts.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError(
            "A report needs matplotlib, which is not installed; run 'pip install matplotlib', or leave "
            "--report out."
        )


def curves(scores: Sequence[Score], *, first: str, seed: int) -> bytes:
    """Draw the mean Dice of all objects by click, one line per method, with its 95 % interval over cases."""
    figure = _figure(7.2, 4.0)
    axes = figure.add_subplot()
    most = max(score.click for score in scores)
    for number, (method, objects) in enumerate(objects_by_method(scores).items()):
        values = np.array([[row.dice for row in rows] for rows in objects])
        resampled = draw(values, [case_of(rows) for rows in objects], generator(seed, "curve"))
        means = resampled.means()
        name = f"{method} ({len(objects)} objects)"
        _line(axes, means, name, COLOURS[number % len(COLOURS)], objects[0][0].click, most)
    axes.set(ylabel="mean Dice", ylim=(0, 1))
    if most:
        axes.set_xticks(range(0 if first == "found" else 1, most + 1))
        axes.set_xlabel("prompts: a box, then clicks" if first == "box" else "clicks")
    _plain(axes)
    _legend(axes)
    return _png(figure)


def reliability_curves(found: Mapping[str, Reliability]) -> bytes:
    """Draw the mean Dice by predicted quality, one line per method; larger dots stand for more masks."""
    figure = _figure(4.2, 4.0)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    for number, (method, curve) in enumerate(found.items()):
        most = max(one.masks for one in curve.bins)
        x, y = ([getattr(one, name) for one in curve.bins] for name in ("predicted", "dice"))
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(x, y, color=colour, linewidth=1.4, label=f"{method} (error {curve.error:.3f})")
        axes.scatter(x, y, s=[6 + 60 * one.masks / most for one in curve.bins], color=colour)
    axes.set(xlabel="predicted quality", ylabel="mean Dice", xlim=(0, 1), ylim=(0, 1))
    _plain(axes)
    _legend(axes)
    return _png(figure)


def training(losses: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw a training run: smoothed loss by step, and Dice of each validation by kind and round.

    Args:
        losses: rows with 'step' and 'loss'.
        measured: rows with 'step' and lists of Dice by round.
    """
    figure = _figure(7.2, 3.2)
    left, right = figure.subplots(1, 2)
    steps, loss = (np.array([row[name] for row in losses]) for name in ("step", "loss"))
    left.plot(steps, loss, color=COLOURS[0], alpha=0.25, linewidth=0.8)
    width = max(1, len(loss) // 25)
    if len(loss) >= width:
        smooth = np.convolve(loss, np.ones(width) / width, "valid")
        left.plot(steps[width - 1 :], smooth, color=COLOURS[0])
    left.set(xlabel="step", ylabel="loss")
    kinds = {kind: len(dice) for kind, dice in measured[0].items() if isinstance(dice, list)}
    lines = [(kind, n) for kind, rounds in kinds.items() for n in range(rounds)]
    for (kind, n), colour in zip(lines, itertools.cycle(COLOURS), strict=False):
        name = f"{kind}, {n + 1}" if kinds[kind] > 1 else kind
        step, dice = [row["step"] for row in measured], [row[kind][n] for row in measured]
        right.plot(step, dice, color=colour, marker="o", markersize=3, label=name)
    right.set(xlabel="step", ylabel="mean Dice", ylim=(0, 1))
    for axes in (left, right):
        _plain(axes)
    _legend(right)
    return _png(figure)


def strip(scores: Sequence[Score], methods: Sequence[str], *, first: str) -> bytes:
    """Draw each case as a dot at the final mean Dice of its objects, one row per method; bars are medians."""
    figure = _figure(7.2, 0.9 + 0.6 * len(methods))
    axes = figure.add_subplot()
    for number, method in enumerate(methods):
        dice = np.array(list(case_dice(scores, method).values()))
        # A deterministic spread instead of random jitter, so that reports are reproducible.
        offset = 0.5 * (np.arange(len(dice)) * 0.618 % 1 - 0.5)
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(dice, number + offset, s=16, color=colour, alpha=0.6, linewidths=0)
        axes.plot([np.median(dice)] * 2, [number - 0.36, number + 0.36], color=colour, linewidth=2)
    last = max(score.click for score in scores)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(methods) - 0.4, -0.6), yticks=range(len(methods)))
    axes.set_yticklabels(methods, parse_math=False)
    axes.set_xlabel(f"mean Dice of a case after {count_name(last, first)}")
    _plain(axes)
    axes.grid(axis="x", color="#e5e5e5")
    return _png(figure)


def case_picture(picture: Picture, titles: Mapping[str, str]) -> bytes:
    """One slice a method: the truth outlined in green, its masks in orange.

    Args:
        titles: of the methods to draw, by name, in this order.
    """
    rows, columns = picture.image.shape
    across = 2 if len(titles) in (2, 4) else min(3, len(titles))
    down = math.ceil(len(titles) / across)
    high, wide = rows * picture.spacing[0], columns * picture.spacing[1]
    width = 3.4
    height = min(2 * width, width * high / wide)
    figure = _figure(width * across, (height + 0.35) * down)
    for number, (method, title) in enumerate(titles.items(), start=1):
        axes = figure.add_subplot(down, across, number)
        aspect = picture.spacing[0] / picture.spacing[1]
        axes.imshow(picture.image, cmap="gray", vmin=0, vmax=255, origin="lower", aspect=aspect)
        for value in np.unique(picture.truth[picture.truth > 0]):
            _outline(axes, picture.truth == value, TRUTH)
        for mask in picture.masks.get(method, []):
            _outline(axes, mask, MASK)
        axes.set(xticks=[], yticks=[], xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
        axes.set_title(title, fontsize=9, parse_math=False)
    return _png(figure)


def _line(axes: Axes, means: Sequence[Mean], name: str, colour: str, start: int, most: int) -> None:
    """Draw the mean Dice of one method; a method without clicks is a dashed horizontal line."""
    value, low, high = (np.array([getattr(mean, end) for mean in means]) for end in ("value", "low", "high"))
    clicks, style, marker = np.arange(start, start + len(means)), "-", "o"
    if start == 0 and len(means) == 1:
        clicks, style, marker = np.array([1, max(most, 2)]), "--", ""
        value, low, high = (np.repeat(values, 2) for values in (value, low, high))
    axes.plot(clicks, value, style, color=colour, marker=marker, markersize=4, label=name)
    axes.fill_between(clicks, low, high, color=colour, alpha=0.15, linewidth=0)


def _outline(axes: Axes, mask: np.ndarray, colour: str) -> None:
    """Draw the outline of a mask, closed along the edge of the picture."""
    if mask.any():
        padded = np.pad(mask, 1).astype(np.float32)
        x, y = np.arange(-1, padded.shape[1] - 1), np.arange(-1, padded.shape[0] - 1)
        axes.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=1.3)


def _figure(width: float, height: float) -> Figure:
    """Return a figure with a size in inches, without pyplot, which would keep figures open."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY)


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="lower right", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # about characters in names that the font does not have
        warnings.simplefilter("ignore")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
