"""How good the model is on labelled volumes, measured as a careful person would click.

    python -m medsam_app.evaluate FOLDER --split dev --clicks 3 --csv scores.csv

FOLDER holds a `manifest.json`. Each label of each case is one object. The first click is the deepest
voxel of the object, each next one the deepest voxel of the largest connected error, with its sign. The
predictor finds its own window: it knows the clicks and nothing of the object. Objects under 100 voxels
are left out and counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from medsam_app.clicks import next_click
from medsam_app.errors import MedsamError
from medsam_app.predictor import VolumePredictor
from medsam_app.volume import Volume, load_mask, load_volume

MIN_VOXELS = 100


@dataclass(frozen=True)
class Score:
    """One object after one click.

    Attributes:
        dice: 1 for a perfect mask, 0 for one that misses the object.
        quality: the Dice that the model itself expected.
        unmet: clicks so far that the mask does not honour.
        seconds: time of this click.
    """

    dataset: str
    modality: str
    case: str
    label: str
    voxels: int
    click: int
    dice: float
    quality: float
    unmet: int
    seconds: float


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def click_through(
    predictor: VolumePredictor, truth: NDArray[np.bool_], *, clicks: int
) -> Iterator[tuple[float, float, int, float]]:
    """Click on an object of the predictor's volume; yields Dice, expected Dice, unmet clicks, seconds.

    Args:
        truth: (i, j, k) the object, not empty.
        clicks: how many; a mask without error ends the clicking and its scores are repeated.
    """
    mask = np.zeros_like(truth)
    points: list[tuple[int, int, int]] = []
    signs: list[int] = []
    result = (0.0, 0.0, 0, 0.0)
    for _ in range(clicks):
        click = next_click(mask, truth, spacing=predictor.volume.spacing)
        if click is not None:
            points.append(click[0])
            signs.append(int(click[1]))
            began = time.perf_counter()
            found = predictor.predict(points=points, point_labels=signs)
            mask = found.mask
            result = (dice(mask, truth), found.score, len(found.unmet), time.perf_counter() - began)
        yield result


def evaluate_case(
    predictor: VolumePredictor,
    volume: Volume,
    label_map: NDArray,
    *,
    clicks: int = 3,
    names: dict[int, str] | None = None,
    case: str = "",
    dataset: str = "",
    modality: str = "",
) -> tuple[list[Score], int]:
    """Scores of every object of a case, and how many were too small.

    Args:
        label_map: (i, j, k) integers on the volume's grid.
        names: names of the labels.
    """
    predictor.set_volume(volume)
    scores, small = [], 0
    for value in np.unique(label_map[label_map > 0]).tolist():
        truth = label_map == value
        voxels = int(truth.sum())
        if voxels < MIN_VOXELS:
            small += 1
            continue
        label = (names or {}).get(value, str(value))
        for number, row in enumerate(click_through(predictor, truth, clicks=clicks), start=1):
            scores.append(Score(dataset, modality, case, label, voxels, number, *row))
    return scores, small


def table(scores: Sequence[Score], key: str, clicks: int) -> Table:
    """Mean Dice after each click, for each value of a field and over all objects."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[str(getattr(score, key))].append(score)
        groups["all objects"].append(score)
    out = Table(title=f"Mean Dice by {key}")
    for column in (key, "objects", *[f"{n} click{'s' if n > 1 else ''}" for n in range(1, clicks + 1)]):
        out.add_column(column, justify="left" if column == key else "right")
    order = sorted(groups, key=lambda name: (name == "all objects", name))
    for name in order:
        rows = groups[name]
        means = [np.mean([s.dice for s in rows if s.click == n]) for n in range(1, clicks + 1)]
        out.add_row(name, str(sum(s.click == 1 for s in rows)), *[f"{mean:.3f}" for mean in means])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--model", default="sam3d_tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--refine", action="store_true", help="draw outlines of large objects in tiles")
    parser.add_argument("--most-cases", type=int, help="at most so many cases of a dataset, evenly spread")
    parser.add_argument("--csv", type=Path, help="where to write every score")
    options = parser.parse_args()
    console = Console()
    manifest = json.loads((options.folder / "manifest.json").read_text())
    by_dataset: dict[str, list[dict]] = defaultdict(list)
    for entry in manifest["cases"]:
        if entry["split"] == options.split:
            by_dataset[entry["dataset"]].append(entry)
    predictor = VolumePredictor(options.model, device=options.device, refine=options.refine)
    scores: list[Score] = []
    small = 0
    for entries in by_dataset.values():
        keep = len(entries) if options.most_cases is None else min(options.most_cases, len(entries))
        for index in np.linspace(0, len(entries) - 1, keep).round().astype(int):
            entry = entries[index]
            try:
                volume = load_volume(options.folder / entry["image"])
                label_map = load_mask(options.folder / entry["label"], volume.grid)
            except MedsamError as error:
                console.print(f"[yellow]{entry['id']}: {error}")
                continue
            names = {int(value): label["name"] for value, label in entry["labels"].items()}
            rows, few = evaluate_case(
                predictor,
                volume,
                label_map,
                clicks=options.clicks,
                names=names,
                case=entry["case"],
                dataset=entry["dataset"],
                modality=entry["modality"],
            )
            scores += rows
            small += few
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(Score.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(asdict(score) for score in scores)
    console.print(table(scores, "dataset", options.clicks))
    console.print(table(scores, "modality", options.clicks))
    last = [score for score in scores if score.click == options.clicks]
    honoured = np.mean([score.unmet == 0 for score in last])
    seconds = np.median([score.seconds for score in scores])
    console.print(
        f"{len(last)} objects, {small} under {MIN_VOXELS} voxels left out; all clicks honoured in "
        f"{100 * honoured:.1f}%; median {seconds:.2f} s a click."
    )


if __name__ == "__main__":
    main()
