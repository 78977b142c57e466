"""Labelled objects of a folder with a `manifest.json`, for benchmarks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import MIN_VOXELS


def labelled_objects(
    folder: Path, most: int, split: str = "train"
) -> Iterator[tuple[str, Volume, NDArray[np.bool_]]]:
    """Yield dataset, volume and mask of objects of a split, evenly spread, with a maximum per dataset."""
    by_dataset: dict[str, list[tuple[dict, int]]] = defaultdict(list)
    for entry in json.loads((folder / "manifest.json").read_text())["cases"]:
        if entry["split"] == split:
            by_dataset[entry["dataset"]] += [
                (entry, int(v)) for v, label in entry["labels"].items() if label["voxels"] >= MIN_VOXELS
            ]
    for found in by_dataset.values():
        for index in np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int):
            entry, value = found[index]
            volume = load_volume(folder / entry["image"])
            yield entry["dataset"], volume, load_mask(folder / entry["label"], volume.grid) == value
