"""Effect of later clicks, by how far a negative click may remove: python benchmarks/corrections.py FOLDER

FOLDER holds a `manifest.json`. For each rule it prints the mean Dice of a careful user after each of eight
clicks; and for negative clicks in the middle of the largest wrong parts of the mask after three clicks (the
leaks that annotators click on), the Dice before and after, the share of these clicks that lower it, and how
much of the object and of the leak was removed. By default `train` cases are used, on which the rule was
chosen.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from labelled_objects import labelled_objects
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.evaluate.click_through import click_through
from medsam_app.grid.masks import FULL_NEIGHBOURHOOD, dice
from medsam_app.grid.patch import Index
from medsam_app.io.volume import Volume
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import Sam3D
from medsam_app.predict.core import click_edit
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.simulated_clicks import click_inside, next_click

#: Voxels of the window, and multiples of the click's depth in the mask, within which it removes.
RULES = {
    "anywhere": (math.inf, 0.0), "4 voxels + 5 depths": (4.0, 5.0), "4 voxels + 3 depths": (4.0, 3.0),
    "2 voxels + 3 depths": (2.0, 3.0),
}  # fmt: skip
CLICKS, BEFORE = 8, 3
#: Leaks of a mask that are clicked, and the smallest one, as a fraction of the object and in voxels.
LEAKS, SMALLEST_SHARE, SMALLEST = 3, 0.005, 30
#: A click that lowers the Dice by more than this does harm.
HARM = 0.002


def use(rule: str) -> None:
    """Set the rule."""
    click_edit.REMOVED_VOXELS, click_edit.REMOVED_DEPTHS = RULES[rule]


def fresh(model: Sam3D, volume: Volume, cache: EmbeddingCache) -> VolumePredictor:
    """Return a predictor without cached masks."""
    predictor = VolumePredictor(model, cache=cache, refine=False)
    predictor.set_volume(volume)
    return predictor


def leak_clicks(
    model: Sam3D, volume: Volume, truth: NDArray[np.bool_], cache: EmbeddingCache
) -> Iterator[tuple[str, list[float]]]:
    """Yield rule and [Dice before, Dice after, share of the object lost, share of the leak removed]."""
    use("anywhere")
    points: list[Index] = []
    signs: list[int] = []
    mask = np.zeros_like(truth)
    for _ in range(BEFORE):
        click = next_click(mask, truth, spacing=volume.spacing)
        if click is None:
            return
        points.append(click[0])
        signs.append(int(click[1]))
        mask = fresh(model, volume, cache).predict(points=points, point_labels=signs).mask
    parts, count = ndimage.label(mask & ~truth, structure=FULL_NEIGHBOURHOOD)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    for number in np.argsort(-sizes)[:LEAKS]:
        if sizes[number] < max(SMALLEST, SMALLEST_SHARE * truth.sum()):
            continue
        leak = parts == number + 1
        for rule in RULES:
            use(rule)
            after = (
                fresh(model, volume, cache)
                .predict(points=[*points, click_inside(leak)], point_labels=[*signs, 0])
                .mask
            )
            lost = float((truth & mask & ~after).sum() / truth.sum())
            removed = float((leak & ~after).sum() / leak.sum())
            yield rule, [dice(mask, truth), dice(after, truth), lost, removed]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=3, help="objects of a dataset")
    parser.add_argument("--model", default="sam3d_tiny")
    options = parser.parse_args()
    model = load_model(options.model)
    assert isinstance(model, Sam3D)
    careful: dict[str, list[list[float]]] = defaultdict(list)
    leaks: dict[str, list[list[float]]] = defaultdict(list)
    for _, volume, truth in labelled_objects(options.folder, options.most, options.split):
        cache = EmbeddingCache(1 << 29)
        for rule in RULES:
            use(rule)
            steps = click_through(fresh(model, volume, cache), truth, clicks=CLICKS)
            careful[rule].append([step.dice for step in steps])
        for rule, row in leak_clicks(model, volume, truth, cache):
            leaks[rule].append(row)
    print(f"Careful clicks on {len(careful['anywhere'])} objects, mean Dice after 1 to {CLICKS} clicks:")
    for rule, rows in careful.items():
        print(f"{rule:<22}{' / '.join(f'{mean:.3f}' for mean in np.mean(rows, axis=0))}")
    print(f"Negative clicks in {len(leaks['anywhere'])} leaks after {BEFORE} clicks:")
    for rule, rows in leaks.items():
        before, after, lost, removed = np.array(rows).T
        print(
            f"{rule:<22}Dice {before.mean():.3f} -> {after.mean():.3f}, lower after "
            f"{np.mean(after < before - HARM):.0%}, lost of the object {lost.mean():.1%}, "
            f"removed of the leak {removed.mean():.0%}"
        )


if __name__ == "__main__":
    main()
