"""Draw the effect of training time and of parts of the training: python docs/make_training_figure.py TABLE

TABLE is what `benchmarks/ablation.py --csv` has written. On the left the Dice of the whole recipe on windows
around `dev` objects by processor time, with the line through the short runs against the logarithm of time
(dotted), and the one through the longest of them and the embedded weights (dashed), as far as ten times the
time of these; on the right what each variant loses or gains in as many minutes as the first of them in the
table. The lines are printed too.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OUT = Path(__file__).parent / "images" / "training.png"
WHOLE = "everything"
ROUNDS = ("1", "3", "5")
COLOURS = ("tab:blue", "tab:orange", "tab:green")


def dice_of(row: dict[str, str]) -> NDArray[np.float64]:
    return np.array([float(row[number]) for number in ROUNDS])


def draw_curve(axes: plt.Axes, runs: list[dict[str, str]], embedded: list[dict[str, str]]) -> None:
    """Draw Dice by minutes for runs of the whole recipe and for the embedded weights."""
    runs = sorted(runs, key=lambda row: float(row["minutes"]))
    minutes = np.array([float(row["minutes"]) for row in runs])
    dice = np.stack([dice_of(row) for row in runs])
    last = max([minutes.max(), *(float(row["minutes"]) for row in embedded)])
    reach = np.array([minutes.min(), 10 * last])
    for column, (number, colour) in enumerate(zip(ROUNDS, COLOURS, strict=True)):
        slope, level = np.polyfit(np.log10(minutes), dice[:, column], 1)
        axes.plot(minutes, dice[:, column], "o", color=colour, label=f"{number} round{'s' * (number != '1')}")
        axes.plot(reach, level + slope * np.log10(reach), ":", color=colour, lw=1)
        ahead = ", ".join(
            f"{level + slope * np.log10(time):.3f} at {time:.0f} min" for time in (last, 10 * last)
        )
        print(f"round {number}: {slope:+.3f} for ten times the time; the line gives {ahead}")
        for row in embedded:
            axes.plot(float(row["minutes"]), dice_of(row)[column], "*", ms=11, color=colour)
            rise = (dice_of(row)[column] - dice[-1, column]) / np.log10(float(row["minutes"]) / minutes[-1])
            ends = dice_of(row)[column] + rise * np.log10(reach[1] / float(row["minutes"]))
            axes.plot([minutes[-1], reach[1]], [dice[-1, column], ends], "--", color=colour, lw=1)
            time = float(row["minutes"])
            print(
                f"  {row['variant']}: {dice_of(row)[column]:.3f} at {time:.0f} min, {rise:+.3f} for ten times"
            )
            print(f"  the time since {minutes[-1]:.0f} min; so on, {ends:.3f} at {reach[1]:.0f} min")
    axes.set(xscale="log", xlabel="minutes of one core", ylabel="Dice, windows around dev objects")
    axes.legend(frameon=False)


def draw_bars(axes: plt.Axes, rows: list[dict[str, str]], whole: dict[str, str]) -> None:
    """Draw the difference to the whole recipe at the same training time."""
    place = np.arange(len(rows))
    for column, (number, colour) in enumerate(zip(ROUNDS, COLOURS, strict=True)):
        change = [dice_of(row)[column] - dice_of(whole)[column] for row in rows]
        axes.barh(place + 0.25 * (column - 1), change, 0.25, color=colour, label=number)
    axes.set_yticks(place, [row["variant"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel=f"change of Dice after {float(whole['minutes']):.0f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    options = parser.parse_args()
    with options.table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["windows"] == "dev"]
    trained = [row for row in rows if int(row["steps"])]
    whole = [row for row in trained if row["variant"] == WHOLE]
    others = [row for row in trained if row["variant"] != WHOLE]
    same = next((row for row in whole if others and row["minutes"] == others[0]["minutes"]), None)
    if same is None:
        parser.error(f"the table needs rows of '{WHOLE}' and of other variants for as many minutes")
    others = [row for row in others if row["minutes"] == same["minutes"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(1, 1.1), layout="constrained")
    draw_curve(left, whole, [row for row in rows if not int(row["steps"])])
    draw_bars(right, others, same)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
