"""How good a model is on labelled volumes, measured as a careful person would click.

    medsam-app evaluate FOLDER --split dev --clicks 10 --baseline walker --csv scores.csv

Each label of each case is one object. The first click is the deepest voxel of the object, each next one
the deepest voxel of the largest connected error, with its sign. The method finds its own window: it knows
the clicks and nothing of the object. Objects under 100 voxels are left out and counted. Instead of the
first click there may be a box, drawn around the object with an unsteady hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_app.cases import Case, list_cases
from medsam_app.classical import BASELINES, baseline
from medsam_app.engine import Progress
from medsam_app.errors import MedsamError, SettingsError, VolumeError, unknown_name
from medsam_app.measuring import FIRSTS, Segmenter, evaluate_case
from medsam_app.models.table import DEFAULT_MODEL, model_entry
from medsam_app.predictor import VolumePredictor
from medsam_app.scores import MIN_VOXELS, Score
from medsam_app.summary import Summary, summarise


@dataclass(frozen=True)
class Skipped:
    """A case that could not be read, and why."""

    dataset: str
    case: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, and how.

    Attributes:
        folder, split, first, clicks, seed, refine, most_cases: what `evaluate_folder` was asked.
        model: name of the model; weights_sha256, adapter: what it ran with ('' for no adapter).
        scores: every object after every click, by every method.
        summaries: of the model, then of the baselines.
        small: objects left out because they have fewer than `MIN_VOXELS` voxels.
        skipped: cases that could not be read.
    """

    folder: str
    split: str
    first: str
    clicks: int
    seed: int
    refine: bool
    most_cases: int | None
    model: str
    weights_sha256: str
    adapter: str
    scores: tuple[Score, ...]
    summaries: tuple[Summary, ...]
    small: int
    skipped: tuple[Skipped, ...]


def evaluate_folder(
    folder: Path,
    *,
    split: str = "dev",
    clicks: int = 10,
    first: str = "click",
    model: str = DEFAULT_MODEL,
    weights: Path | None = None,
    adapter: Path | None = None,
    device: str = "auto",
    refine: bool = False,
    baselines: Sequence[str] = (),
    most_cases: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    skip: Callable[[Skipped], None] | None = None,
) -> Evaluation:
    """Measure a model, and baselines beside it, on a folder of labelled volumes.

    Args:
        folder: has a `manifest.json`.
        split: which of its cases.
        clicks: on each object.
        first: "click", or "box": instead of the first click.
        model, weights, adapter, device: as for `VolumePredictor`.
        refine: draw the outlines of large objects in tiles; takes seconds a click.
        baselines: names of `medsam_app.classical.BASELINES`.
        most_cases: at most so many of a dataset, evenly spread.
        seed: of boxes, of resampling and of fresh weights.
        progress: called with a sentence and a fraction done.
        skip: called with a case that cannot be read, when it is met.

    Raises:
        VolumeError: no usable manifest, no case that can be read, no object large enough.
        SettingsError: an unknown split, baseline or first prompt, or a number below one.
        ModelError, AdapterError: from loading the model.
    """
    _check(clicks, first, baselines)
    model_entry(model)
    cases = list_cases(folder, split=split, most=most_cases)
    predictor = VolumePredictor(model, weights=weights, adapter=adapter, device=device, refine=refine)
    segmenters: dict[str, Segmenter] = {model: predictor}
    segmenters |= {name: baseline(name, device=device, refine=refine, seed=seed) for name in baselines}
    scores: list[Score] = []
    small, skipped = 0, []
    for number, each in enumerate(cases):
        tell = _telling(progress, each, number / len(cases), 1 / len(cases))
        tell("reading", 0.0)
        try:
            volume, label_map = each.load()
        except MedsamError as error:
            skipped.append(Skipped(each.dataset, each.case, str(error)))
            if skip is not None:
                skip(skipped[-1])
            continue
        rows, few = evaluate_case(
            segmenters,
            volume,
            label_map,
            clicks=clicks,
            first=first,
            seed=seed,
            names=each.names,
            case=each.case,
            dataset=each.dataset,
            modality=each.modality,
            progress=tell,
        )
        scores += rows
        small += few
    if not scores:
        read = len(cases) - len(skipped)
        raise VolumeError(
            f"Nothing was measured: of {len(cases)} cases of split '{split}' {read} could be read, and none "
            f"of their labels has {MIN_VOXELS} voxels or more."
        )
    return Evaluation(
        folder=str(folder),
        split=split,
        first=first,
        clicks=clicks,
        seed=seed,
        refine=refine,
        most_cases=most_cases,
        model=model,
        weights_sha256=predictor.model.weights_sha256,
        adapter=predictor.model.adapter_id,
        scores=tuple(scores),
        summaries=summarise(scores, seed=seed),
        small=small,
        skipped=tuple(skipped),
    )


def _telling(progress: Progress | None, case: Case, start: float, share: float) -> Progress:
    """Progress within a case as progress of the whole."""

    def tell(what: str, done: float) -> None:
        if progress is not None:
            progress(f"{case.dataset}, {case.case}: {what}", start + done * share)

    return tell


def _check(clicks: int, first: str, baselines: Sequence[str]) -> None:
    if clicks < 1:
        raise SettingsError(f"At least one click an object is needed; got {clicks}.")
    if first not in FIRSTS:
        raise SettingsError(unknown_name("first prompt", first, FIRSTS))
    for name in baselines:
        if name not in BASELINES:
            raise SettingsError(unknown_name("baseline", name, BASELINES))
