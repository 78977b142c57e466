"""Measuring one case: who clicks where, and what each click scores."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from medsam_app.clicks import next_click
from medsam_app.engine import Progress
from medsam_app.roi import Index, mask_bounds
from medsam_app.scores import MIN_VOXELS, Score, dice
from medsam_app.volume import Volume

#: What an object's prompts may begin with.
FIRSTS = ("click", "box")
#: Most by which a face of a box is off, as a fraction of the box's size across it.
BOX_JITTER = 0.1


class Answer(Protocol):
    """What a method makes of prompts."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(i, j, k) on the volume's grid."""

    @property
    def score(self) -> float | None:
        """The Dice that the method itself expects, if it expects any."""


class Segmenter(Protocol):
    """A method that can be measured: `VolumePredictor`, or one of `medsam_app.classical`."""

    @property
    def volume(self) -> Volume:
        """The volume that is segmented."""

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""

    def predict(self, *, points: Any = None, point_labels: Any = None, boxes: Any = None) -> Answer:
        """Segment from all prompts so far; see `VolumePredictor.predict`."""


class Step(NamedTuple):
    """One prompt of an object; see `Score`."""

    dice: float
    quality: float | None
    unmet: int
    seconds: float | None


def jittered_box(truth: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Index, Index]:
    """First and last voxel of an object's bounding box, each face moved by up to a tenth of its size.

    Args:
        truth: (i, j, k) the object, not empty.
        rng: where the unsteadiness comes from; the box stays within the volume.
    """
    bounds = mask_bounds(truth)
    if bounds is None:
        raise ValueError("empty object")
    low, high = np.array(bounds[0]), np.array(bounds[1]) - 1
    moved = np.stack([low, high]) + rng.uniform(-BOX_JITTER, BOX_JITTER, size=(2, 3)) * (high - low + 1)
    moved = np.clip(np.round(moved), 0, np.array(truth.shape) - 1).astype(int)
    return tuple(moved.min(axis=0).tolist()), tuple(moved.max(axis=0).tolist())


def click_through(
    segmenter: Segmenter,
    truth: NDArray[np.bool_],
    *,
    clicks: int,
    box: tuple[Index, Index] | None = None,
) -> Iterator[Step]:
    """Click on an object of the segmenter's volume.

    Args:
        truth: (i, j, k) the object, not empty.
        clicks: how many; a mask without error ends the clicking and its scores are repeated.
        box: first and last voxel of a box that takes the place of the first click.
    """
    mask = np.zeros_like(truth)
    points: list[Index] = []
    signs: list[int] = []
    boxes = None if box is None else [box]
    result = Step(0.0, None, 0, None)
    for number in range(clicks):
        if number or boxes is None:
            click = next_click(mask, truth, spacing=segmenter.volume.spacing)
            if click is None:
                yield result._replace(seconds=None)
                continue
            points.append(click[0])
            signs.append(int(click[1]))
        given = {"points": points, "point_labels": signs} if points else {}
        began = time.perf_counter()
        found = segmenter.predict(boxes=boxes, **given)
        mask = found.mask
        seconds = time.perf_counter() - began
        unmet = sum(int(mask[point]) != sign for point, sign in zip(points, signs, strict=True))
        result = Step(dice(mask, truth), found.score, unmet, seconds)
        yield result


def evaluate_case(
    segmenters: Mapping[str, Segmenter],
    volume: Volume,
    label_map: NDArray[np.integer],
    *,
    clicks: int = 10,
    first: str = "click",
    seed: int = 0,
    names: Mapping[int, str] | None = None,
    case: str = "",
    dataset: str = "",
    modality: str = "",
    progress: Progress | None = None,
) -> tuple[list[Score], int]:
    """Scores of every object of a case, and how many were too small.

    Args:
        segmenters: by the name of the method.
        label_map: (i, j, k) integers on the volume's grid.
        clicks: on each object, the box counted as one.
        first: "click" or "box".
        seed: of the box, which is the same for all methods and whatever else is measured.
        names: names of the labels.
        progress: called with the name of an object and the fraction of them done.
    """
    for segmenter in segmenters.values():
        segmenter.set_volume(volume)
    scores, small = [], 0
    values, counts = np.unique(label_map, return_counts=True)
    for number, (value, voxels) in enumerate(zip(values.tolist(), counts.tolist(), strict=True)):
        if value <= 0:
            continue
        if voxels < MIN_VOXELS:
            small += 1
            continue
        truth = label_map == value
        label = (names or {}).get(value, str(value))
        if progress is not None:
            progress(label, number / len(values))
        own = zlib.crc32(f"{dataset}/{modality}/{case}/{value}".encode())
        box = jittered_box(truth, np.random.default_rng([seed, own])) if first == "box" else None
        for method, segmenter in segmenters.items():
            for click, step in enumerate(click_through(segmenter, truth, clicks=clicks, box=box), start=1):
                scores.append(Score(method, dataset, modality, case, label, value, voxels, click, *step))
    return scores, small
