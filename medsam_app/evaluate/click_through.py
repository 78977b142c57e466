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
    """One prompt of an object and its (i, j, k) mask; see `Score`."""

    dice: float
    quality: float | None
    unmet: int
    seconds: float | None
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ClickPlan:
    """Measurement settings, the same for all objects.

    Attributes:
        clicks: on each object, the box counted as one.
        shown: numbers of clicks after which surfaces are measured; empty for never. Click 0 is always.
        first: as in `EvaluateOptions`.
        seed: of the box, which is the same for all methods and whatever else is measured.
        tolerance: mm, see `surface_distances`.
        labels: names or values of those that are measured; none named for all.
    """

    clicks: int = 10
    shown: tuple[int, ...] = ()
    first: str = "click"
    seed: int = 0
    tolerance: float | None = None
    labels: tuple[str, ...] = ()

    def wants(self, value: int, name: str) -> bool:
        """Return whether a label is measured."""
        return not self.labels or str(value) in self.labels or name in self.labels


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """Identity of a case for its scores.

    Attributes:
        dataset, modality, case: copied to its scores.
        names: of its labels.
    """

    dataset: str = ""
    modality: str = ""
    case: str = ""
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass
class CaseScores:
    """Scores of one or several cases.

    Attributes:
        small: objects that were left out.
        false: labels that were found where there are none.
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
    begun: NDArray[np.bool_] | None = None,
) -> Iterator[PromptResult]:
    """Click on an object of the segmenter's volume.

    Args:
        truth: (i, j, k) the object, not empty.
        clicks: how many; a mask without error ends the clicking and its scores are repeated.
        box: first and last voxel of a box that takes the place of the first click.
        begun: (i, j, k) mask that the segmenter begins with.
    """
    mask = np.zeros_like(truth) if begun is None else begun
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
        given = {"points": points, "point_labels": signs} if points else {}
        began = time.perf_counter()
        found = segmenter.predict(boxes=boxes, **given)
        mask = found.mask
        seconds = time.perf_counter() - began
        unmet = sum(int(mask[point]) != sign for point, sign in zip(points, signs, strict=True))
        result = PromptResult(dice(mask, truth), found.score, unmet, seconds, mask)
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
    """Scores of every object of a case, by every method.

    Args:
        label_map: (i, j, k) integers on the volume's grid.
        about: the case that is measured.
        progress: called with the name of an object and the fraction of them done.
        gallery: gets a picture of the case.
    """
    about = about or CaseInfo()
    key, names = (about.dataset, about.modality, about.case), about.names
    counts = dict(zip(*(each.tolist() for each in np.unique(label_map, return_counts=True)), strict=True))
    wanted = [value for value in counts if value > 0 and plan.wants(value, names.get(value, ""))]
    objects = [value for value in wanted if counts[value] >= MIN_VOXELS]
    found = CaseScores(small=len(wanted) - len(objects))
    methods.set_volume(volume)
    if gallery is not None and objects:
        gallery.begin(volume, np.where(np.isin(label_map, objects), label_map, 0))
    maps = {}
    for method, mapper in methods.mappers.items():
        if progress is not None:
            progress(method, 0.0)
        maps[method] = _mapped(mapper)
        for value, voxels in zip(*np.unique(maps[method].labels, return_counts=True), strict=True):
            label = names.get(int(value), str(value))
            if value > 0 and int(value) not in counts and plan.wants(int(value), label):
                found.false.append(FalseLabel(method, *key, label, int(value), int(voxels)))
    for number, value in enumerate(objects):
        label = names.get(value, str(value))
        if progress is not None:
            progress(label, number / len(objects))
        truth = label_map == value
        walks = _clicked(methods, maps, truth, value, plan, "/".join((*key, str(value))))
        known = [method for method in maps if value in methods.mappers[method].labels]
        walks |= {method: _found(maps[method], truth, value) for method in known}
        for method, steps in walks.items():
            for click, step, far in _with_distances(steps, truth, volume, plan):
                row = Score(
                    method, *key, label, value, counts[value], click,
                    step.dice, step.quality, step.unmet, step.seconds, *far,
                )  # fmt: skip
                found.scores.append(row)
            if gallery is not None:
                gallery.add(method, step.mask)
    if gallery is not None:
        gallery.finish(key)
    return found


class _Map(NamedTuple):
    """(i, j, k) labels that a method found, and the seconds that it took."""

    labels: NDArray[np.integer]
    seconds: float


def _clicked(
    methods: Methods,
    maps: Mapping[str, _Map],
    truth: NDArray[np.bool_],
    value: int,
    plan: ClickPlan,
    name: str,
) -> dict[str, Iterator[tuple[int, PromptResult]]]:
    """Numbered steps of an object by every method that is clicked; `name` tells it from all others."""
    box = None
    if plan.first == "box":
        box = jittered_box(truth, np.random.default_rng([plan.seed, zlib.crc32(name.encode())]))
    walks: dict[str, Iterator[tuple[int, PromptResult]]] = {}
    for method, clicked in methods.for_label(value).items():
        mapper, segmenter = methods.begin.get(method), clicked
        if plan.first != "found" or mapper is None:
            walks[method] = enumerate(click_through(segmenter, truth, clicks=plan.clicks, box=box), start=1)
            continue
        begun = maps[mapper].labels == value
        segmenter = methods.told[method].meaning(value, begun=begun)
        steps = click_through(segmenter, truth, clicks=plan.clicks, begun=begun)
        start = PromptResult(dice(begun, truth), None, 0, maps[mapper].seconds, begun)
        walks[method] = enumerate(chain([start], steps))
    return walks


def _mapped(mapper: LabelMapper) -> _Map:
    began = time.perf_counter()
    labels = mapper.predict_labels()
    return _Map(labels, time.perf_counter() - began)


def _found(found: _Map, truth: NDArray[np.bool_], value: int) -> Iterator[tuple[int, PromptResult]]:
    """Yield the score of an object that was found without a click."""
    mask = found.labels == value
    yield 0, PromptResult(dice(mask, truth), None, 0, found.seconds, mask)


def _with_distances(
    steps: Iterator[tuple[int, PromptResult]], truth: NDArray[np.bool_], volume: Volume, plan: ClickPlan
) -> Iterator[tuple[int, PromptResult, tuple[float | None, float | None]]]:
    """Yield steps, with surface distances after the listed clicks."""
    before: tuple[NDArray, Distances] | None = None
    for click, step in steps:
        if not plan.shown or click not in (0, *plan.shown):
            yield click, step, (None, None)
            continue
        if before is None or before[0] is not step.mask:
            far = surface_distances(step.mask, truth, spacing=volume.spacing, tolerance=plan.tolerance)
            before = (step.mask, far)
        yield click, step, before[1]
