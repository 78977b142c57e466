"""Benefit of the uncertainty map on labelled cases: python benchmarks/doubt.py FOLDER

FOLDER holds a `manifest.json`; `train` cases are used. After one and after three careful clicks, it measures
how well uncertainty separates wrong voxels of the window from right ones (area under the ROC curve), and the
Dice after one more click at the suggested position. For comparison, that click is also placed at random on
the outline, and at the centre of the largest error, which requires the truth. A click gets the sign of its
voxel.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from choices import objects
from scipy import ndimage
from scipy.stats import rankdata

from medsam_app.grid.masks import dice
from medsam_app.grid.patch import box_slices
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.uncertainty import doubt_of
from medsam_app.prompts.simulated_clicks import next_click
from medsam_app.prompts.types import Point

CLICKS = (1, 3)


def area_under_curve(values, wrong) -> float:
    """Return the probability that a wrong voxel is more uncertain than a right one."""
    ranks, count = rankdata(values.ravel())[wrong.ravel()], int(wrong.sum())
    right = wrong.size - count
    return (
        float((ranks.sum() - count * (count + 1) / 2) / (count * right)) if count and right else float("nan")
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=4, help="objects of a dataset")
    asked = parser.parse_args()
    predictor, rng = VolumePredictor(refine=False), np.random.default_rng(0)
    found = defaultdict(lambda: defaultdict(list))
    for volume, truth in objects(asked.folder, asked.most):
        predictor.set_volume(volume)
        prompts, mask = [], np.zeros_like(truth)

        def point(voxel, truth=truth) -> Point:
            i, j, k = map(float, voxel)
            return Point(coordinates=(i, j, k), positive=bool(truth[tuple(map(int, voxel))]))

        for number in range(1, max(CLICKS) + 1):
            click = next_click(mask, truth, spacing=volume.spacing)
            if click is None:
                break
            prompts.append(point(click[0]))
            made = predictor.predict_prompts(prompts)
            mask = made.mask
            error = next_click(mask, truth, spacing=volume.spacing)
            if number not in CLICKS or error is None:
                continue
            variants, roi = predictor.variants(prompts)
            doubt = doubt_of(variants, roi, made.patch, volume.grid)
            wrong = (mask != truth)[box_slices(doubt.start, np.add(doubt.start, doubt.values.shape))]
            outline = np.argwhere(mask & ~ndimage.binary_erosion(mask))
            places = {"largest error": error[0], "doubt": doubt.worst}
            places["outline"] = outline[rng.integers(len(outline))] if len(outline) else None
            rows = found[number]
            rows["before"].append(dice(mask, truth))
            rows["area"].append(area_under_curve(doubt.values, wrong))
            for name, place in places.items():
                after = mask if place is None else predictor.predict_prompts([*prompts, point(place)]).mask
                rows[name].append(dice(after, truth))
    for number, rows in found.items():
        told = ", ".join(f"{name} {np.nanmean(values):.3f}" for name, values in rows.items())
        print(f"{len(rows['before'])} objects after {number}: {told}")


if __name__ == "__main__":
    main()
