"""Draw the best, the median and the worst objects after one, three and five clicks.

    medsam-app evaluate FOLDER --clicks 10 --no-refine --csv SCORES
    python docs/make_contact_sheet.py FOLDER SCORES

Draws two objects per rank, chosen by their Dice after five clicks, from different cases. The ground truth is
outlined in green and the mask in orange, in the axial slice with the largest part of the object, cropped.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from medsam_app.datasets.cases import list_cases
from medsam_app.grid.geometry import Grid
from medsam_app.grid.masks import dice
from medsam_app.grid.patch import mask_bounds
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.simulated_clicks import next_click

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OUT = Path(__file__).parent / "images" / "contact_sheet.png"
CLICKS = (1, 3, 5)
#: Objects of each rank.
EACH = 2
MODEL = "sam3d_tiny"
Object = tuple[str, str, str]


def chosen(scores: Path, leave_out: list[str]) -> list[tuple[str, Object]]:
    """Return (rank, (dataset, case, label)) of the objects to draw, without the datasets in `leave_out`."""
    found: dict[Object, float] = {}
    with scores.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["dataset"] in leave_out or row["method"] != MODEL:
                continue
            if int(row["click"]) == CLICKS[-1]:
                found[row["dataset"], row["case"], row["label"]] = float(row["dice"])
    order = sorted(found, key=lambda key: found[key])
    middle = sorted(order, key=lambda key: abs(found[key] - found[order[len(order) // 2]]))
    picked: list[tuple[str, Object]] = []
    for rank, candidates in (("best", order[::-1]), ("median", middle), ("worst", order)):
        for key in candidates:
            taken = [other for other_rank, other in picked if other_rank == rank]
            if len(taken) < EACH and key[1] not in {case for _, case, _ in taken}:
                picked.append((rank, key))
    return picked


def slice_of(array: NDArray, grid: Grid, index: int) -> NDArray:
    """Return an axial slice in radiological convention: anterior at the top, the right side on the left."""
    return np.flip(grid.ras.from_file(array)[:, :, index].T, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="labelled volumes, with a manifest.json")
    parser.add_argument("scores", type=Path, help="table of the scores of its dev cases")
    parser.add_argument("--leave-out", action="append", default=[], help="a dataset not to be shown")
    options = parser.parse_args()
    cases = {(case.dataset, case.case): case for case in list_cases(options.folder, split="dev")}
    predictor = VolumePredictor(refine=False)
    objects = chosen(options.scores, options.leave_out)
    figure, grid = plt.subplots(len(objects), len(CLICKS), figsize=(7.5, 2.4 * len(objects)))
    for line, (rank, (dataset, name, label)) in zip(grid, objects, strict=True):
        case = cases[dataset, name]
        volume, labels = case.load()
        value = next(v for v in np.unique(labels) if v > 0 and case.names.get(v, str(v)) == label)
        truth = labels == value
        predictor.set_volume(volume)
        ras = volume.grid.ras.from_file(truth)
        bounds = mask_bounds(ras)
        assert bounds is not None
        index = int(ras.sum(axis=(0, 1)).argmax())
        low, high = np.array(bounds[0])[:2], np.array(bounds[1])[:2]
        room = max(6, int(0.6 * (high - low).max()))
        width = ras.shape[0]
        extent = (width - high[0] - room, width - low[0] + room, low[1] - room, high[1] + room)
        image = slice_of(volume.array, volume.grid, index)
        part = image[max(0, extent[2]) : extent[3], max(0, extent[0]) : extent[1]]
        black, white = np.percentile(part, [1, 99])
        mask, points, signs = np.zeros_like(truth), [], []
        for clicks in range(1, CLICKS[-1] + 1):
            click = next_click(mask, truth, spacing=volume.spacing)
            if click is not None:
                points.append(click[0])
                signs.append(int(click[1]))
                mask = predictor.predict(points=points, point_labels=signs).mask
            if clicks not in CLICKS:
                continue
            axes = line[CLICKS.index(clicks)]
            spacing = volume.grid.ras.spacing
            axes.imshow(image, cmap="gray", vmin=black, vmax=white, origin="lower", interpolation="nearest")
            for area, colour in ((truth, "#3cdc5a"), (mask, "#ff9628")):
                outline = slice_of(area, volume.grid, index)
                if outline.any():
                    axes.contour(outline, levels=[0.5], colors=colour, linewidths=1.2)
            axes.set(xlim=extent[:2], ylim=extent[2:], aspect=spacing[1] / spacing[0], xticks=[], yticks=[])
            axes.set_title(f"{clicks} click{'s' * (clicks > 1)}: {dice(mask, truth):.2f}", fontsize=9)
        line[0].set_ylabel(f"{rank}\n{name}\n{label}", fontsize=7)
        print(f"{rank:<8}{dataset}, {name}, {label}: {dice(mask, truth):.3f}")
    figure.tight_layout(pad=0.4)
    figure.savefig(OUT, dpi=80)


if __name__ == "__main__":
    main()
