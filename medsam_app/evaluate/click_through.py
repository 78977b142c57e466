"""Measurement of one case: simulated clicks and their scores."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medsam_app.evaluate.gallery import Gallery
from medsam_app.evaluate.protocols import LabelMapper, Methods, Segmenter
from medsam_app.grid.masks import dice
from medsam_app.grid.patch import Index
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import MIN_VOXELS, FalseLabel, Score
from medsam_app.measure.surface_distances import Distances, surface_distances
from medsam_app.progress import Progress
from medsam_app.prompts.simulated_clicks import jittered_box, next_click


class PromptResult(NamedTuple):
    """Result of one prompt of an object, with its (i, j, k) mask; see `Score`."""

    dice: float
    quality: float | None
    unmet: int
    seconds: float | None
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ClickPlan:
    """Measurement settings, the same for all objects.

    Attributes:
        clicks: number of clicks per object; a box counts as one.
        shown: numbers of clicks after which surface distances are measured, in addition to click 0; empty for
            never.
        first: as in `EvaluateOptions`.
        seed: seed of the box, which is the same for all methods and does not depend on other measured
            objects.
        tolerance: in mm, see `surface_distances`.
        labels: names or values of the labels to measure; empty for all.
        per_case: maximum number of objects per case, evenly spread by size; None for all.
    """

    clicks: int = 10
    shown: tuple[int, ...] = ()
    first: str = "click"
    seed: int = 0
    tolerance: float | None = None
    labels: tuple[str, ...] = ()
    per_case: int | None = None

    def includes(self, value: int, name: str) -> bool:
        """Return whether a label is measured."""
        return not self.labels or str(value) in self.labels or name in self.labels


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """Identity of a case for its scores.

    Attributes:
        dataset, modality, case: copied to its scores.
        names: label names by value.
    """

    dataset: str = ""
    modality: str = ""
    case: str = ""
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass
class CaseScores:
    """Scores of one or several cases.

    Attributes:
        small: number of objects left out because they are too small.
        false: labels found in cases that do not have them.
    """

    scores: list[Score] = field(default_factory=list)
    small: int = 0
    false: list[FalseLabel] = field(default_factory=list)


def click_through(
    segmenter: Segmenter,
    truth: NDArray[np.bool_],
    *,
    clicks: int,
    box: tuple[Index, Index] | None = None,
    initial_mask: NDArray[np.bool_] | None = None,
) -> Iterator[PromptResult]:
    """Click on an object of the segmenter's volume and yield the result of each prompt.

    Args:
        truth: (i, j, k) the object, not empty.
        clicks: number of prompts. Once a mask has no error, no more clicks are made and its scores are
            repeated.
        box: first and last voxel of a box that replaces the first click.
        initial_mask: (i, j, k) initial mask of the segmenter.
    """
    mask = np.zeros_like(truth) if initial_mask is None else initial_mask
    points: list[Index] = []
    signs: list[int] = []
    boxes = None if box is None else [box]
    result = PromptResult(dice(mask, truth), None, 0, None, mask)
    for number in range(clicks):
        if number or boxes is None:
            click = next_click(mask, truth, spacing=segmenter.volume.spacing)
            if click is None:
                yield result._replace(seconds=None)
                continue
            points.append(click[0])
            signs.append(int(click[1]))
        arguments = {"points": points, "point_labels": signs} if points else {}
        began = time.perf_counter()
        prediction = segmenter.predict(boxes=boxes, **arguments)
        mask = prediction.mask
        seconds = time.perf_counter() - began
        unmet = sum(int(mask[point]) != sign for point, sign in zip(points, signs, strict=True))
        result = PromptResult(dice(mask, truth), prediction.score, unmet, seconds, mask)
        yield result


def evaluate_case(
    methods: Methods,
    volume: Volume,
    label_map: NDArray[np.integer],
    *,
    plan: ClickPlan,
    about: CaseInfo | None = None,
    progress: Progress | None = None,
    gallery: Gallery | None = None,
) -> CaseScores:
    """Score every object of a case with every method.

    Args:
        label_map: (i, j, k) integers on the volume's grid.
        about: identity of the case.
        progress: called with the name of an object and the fraction of objects done.
        gallery: receives a picture of the case.
    """
    about = about or CaseInfo()
    key, names = (about.dataset, about.modality, about.case), about.names
    counts = dict(zip(*(column.tolist() for column in np.unique(label_map, return_counts=True)), strict=True))
    values = [value for value in counts if value > 0 and plan.includes(value, names.get(value, ""))]
    objects = [value for value in values if counts[value] >= MIN_VOXELS]
    scores = CaseScores(small=len(values) - len(objects))
    if plan.per_case is not None and len(objects) > plan.per_case:
        by_size = sorted(objects, key=lambda value: (counts[value], value))
        places = np.linspace(0, len(objects) - 1, plan.per_case).round().astype(int)
        objects = sorted(by_size[place] for place in places)
    methods.set_volume(volume)
    if gallery is not None and objects:
        gallery.begin(volume, np.where(np.isin(label_map, objects), label_map, 0))
    maps = {}
    for method, mapper in methods.mappers.items():
        if progress is not None:
            progress(method, 0.0)
        maps[method] = _timed_map(mapper)
        for value, voxels in zip(*np.unique(maps[method].labels, return_counts=True), strict=True):
            label = names.get(int(value), str(value))
            if value > 0 and int(value) not in counts and plan.includes(int(value), label):
                scores.false.append(FalseLabel(method, *key, label, int(value), int(voxels)))
    for number, value in enumerate(objects):
        label = names.get(value, str(value))
        if progress is not None:
            progress(label, number / len(objects))
        truth = label_map == value
        steps_by_method = _click_steps(methods, maps, truth, value, plan, "/".join((*key, str(value))))
        mappers = [method for method in maps if value in methods.mappers[method].labels]
        steps_by_method |= {method: _map_score(maps[method], truth, value) for method in mappers}
        for method, steps in steps_by_method.items():
            for click, step, distances in _with_distances(steps, truth, volume, plan):
                row = Score(
                    method, *key, label, value, counts[value], click,
                    step.dice, step.quality, step.unmet, step.seconds, *distances,
                )  # fmt: skip
                scores.scores.append(row)
            if gallery is not None:
                gallery.add(method, step.mask)
    if gallery is not None:
        gallery.finish(key)
    return scores


class _TimedMap(NamedTuple):
    """(i, j, k) labels that a method found, and the seconds it took."""

    labels: NDArray[np.integer]
    seconds: float


def _click_steps(
    methods: Methods,
    maps: Mapping[str, _TimedMap],
    truth: NDArray[np.bool_],
    value: int,
    plan: ClickPlan,
    name: str,
) -> dict[str, Iterator[tuple[int, PromptResult]]]:
    """Return numbered steps of an object for each clicked method.

    Args:
        name: identifies the object, and seeds its box.
    """
    box = None
    if plan.first == "box":
        box = jittered_box(truth, np.random.default_rng([plan.seed, zlib.crc32(name.encode())]))
    steps_by_method: dict[str, Iterator[tuple[int, PromptResult]]] = {}
    for method, default in methods.for_label(value).items():
        mapper, segmenter = methods.initial_maps.get(method), default
        if plan.first != "found" or mapper is None:
            steps_by_method[method] = enumerate(
                click_through(segmenter, truth, clicks=plan.clicks, box=box), start=1
            )
            continue
        initial_mask = maps[mapper].labels == value
        segmenter = methods.labelled[method].with_label(value, initial_mask=initial_mask)
        steps = click_through(segmenter, truth, clicks=plan.clicks, initial_mask=initial_mask)
        start = PromptResult(dice(initial_mask, truth), None, 0, maps[mapper].seconds, initial_mask)
        steps_by_method[method] = enumerate(chain([start], steps))
    return steps_by_method


def _timed_map(mapper: LabelMapper) -> _TimedMap:
    start = time.perf_counter()
    labels = mapper.predict_labels()
    return _TimedMap(labels, time.perf_counter() - start)


def _map_score(
    label_map: _TimedMap, truth: NDArray[np.bool_], value: int
) -> Iterator[tuple[int, PromptResult]]:
    """Yield the score of an object that was found without a click."""
    mask = label_map.labels == value
    yield 0, PromptResult(dice(mask, truth), None, 0, label_map.seconds, mask)


def _with_distances(
    steps: Iterator[tuple[int, PromptResult]], truth: NDArray[np.bool_], volume: Volume, plan: ClickPlan
) -> Iterator[tuple[int, PromptResult, tuple[float | None, float | None]]]:
    """Yield steps, with surface distances after the listed clicks."""
    previous: tuple[NDArray, Distances] | None = None
    for click, step in steps:
        if not plan.shown or click not in (0, *plan.shown):
            yield click, step, (None, None)
            continue
        if previous is None or previous[0] is not step.mask:
            distances = surface_distances(step.mask, truth, spacing=volume.spacing, tolerance=plan.tolerance)
            previous = (step.mask, distances)
        yield click, step, previous[1]
