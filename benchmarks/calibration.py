"""Expected Dice by predicted quality: python benchmarks/calibration.py FOLDER [--split train]

Makes careful clicks, and boxes followed by clicks, on objects of a folder with a `manifest.json`; fits the
coefficients of `Calibration` and prints them, with the expected calibration error of the predicted quality,
of the expected Dice in use, and of the fitted one. Coefficients are fitted on `train` cases; `--split dev`
checks those in use on cases that were not used.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from labelled_objects import labelled_objects
from numpy.typing import NDArray
from scipy import optimize

from medsam_app.evaluate.click_through import click_through
from medsam_app.evaluate.reliability import reliability
from medsam_app.grid.masks import dice
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import Score
from medsam_app.models.table import DEFAULT_MODEL
from medsam_app.predict.core.expected_dice import CALIBRATIONS, Calibration, features
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.simulated_clicks import jittered_box

CLICKS = 10
#: Weight of the squared coefficients, so that rare cases do not run away.
RIDGE = 1e-3


def masks(model: VolumePredictor, volume: Volume, truth: NDArray[np.bool_]) -> Iterator[tuple]:
    """Yield features, predicted quality and Dice of each mask, after clicks alone and after a box."""
    for box in (None, jittered_box(truth, np.random.default_rng(0))):
        model.set_volume(volume)
        before = None
        for number, step in enumerate(click_through(model, truth, clicks=CLICKS, box=box), start=1):
            agreement = None if before is None else dice(before, step.mask)
            values = features(step.quality or 0.0, prompts=number, agreement=agreement, box=box is not None)
            yield values, step.quality or 0.0, step.dice
            before = step.mask


def fitted(values: NDArray, dice_values: NDArray, weights: NDArray) -> NDArray:
    """Return the coefficients with the least cross-entropy."""

    def loss(coefficients: NDArray) -> tuple[float, NDArray]:
        total = values @ coefficients
        entropy = np.logaddexp(0, total) - dice_values * total
        slope = 1 / (1 + np.exp(-total)) - dice_values
        return (
            float((weights * entropy).sum() + RIDGE * (coefficients**2).sum()),
            values.T @ (weights * slope) + 2 * RIDGE * coefficients,
        )

    return optimize.minimize(loss, np.zeros(values.shape[1]), jac=True, method="BFGS").x


def error(predicted: NDArray, dice_values: NDArray) -> float:
    """Return the expected calibration error."""
    pairs = zip(predicted.tolist(), dice_values.tolist(), strict=True)
    found = reliability([Score("", "", "", "", "", 1, 1, 1, real, one, 0, None) for one, real in pairs])
    assert found is not None
    return found.error


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--most", type=int, default=5, help="objects of a dataset")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    in_use = CALIBRATIONS.pop(options.model, None)  # so that the predicted quality is returned unchanged
    model = VolumePredictor(options.model, refine=False, cache=EmbeddingCache(1 << 29))
    rows, datasets = [], []
    for dataset, volume, truth in labelled_objects(options.folder, options.most, options.split):
        for row in masks(model, volume, truth):
            rows.append(row)
            datasets.append(dataset)
    values, quality, real = (np.array(column) for column in zip(*rows, strict=True))
    names, place, count = np.unique(datasets, return_inverse=True, return_counts=True)
    weights = 1 / (len(names) * count[place])  # all datasets count the same
    coefficients = fitted(values, real, weights)
    print(f"{len(rows)} masks of {len(names)} datasets, mean Dice {real.mean():.3f}")
    print(f"predicted quality: mean {quality.mean():.3f}, calibration error {error(quality, real):.3f}")
    if in_use is not None:
        columns = np.array([in_use.constant, in_use.quality, in_use.prompts, in_use.again])
        expected = 1 / (1 + np.exp(-values @ np.append(columns, [in_use.agreement, in_use.box])))
        print(f"expected Dice in use: mean {expected.mean():.3f}, error {error(expected, real):.3f}")
    expected = 1 / (1 + np.exp(-values @ coefficients))
    print(f"fitted on these masks: mean {expected.mean():.3f}, error {error(expected, real):.3f}")
    print(Calibration(*(round(float(one), 2) for one in coefficients)))


if __name__ == "__main__":
    main()
