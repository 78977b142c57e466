"""Evaluation of models on labelled volumes by the clicks of a careful simulated user.

    medsam-app evaluate DATASET --adapter liver.safetensors --base --csv scores.csv --report report.html

Each label of each case is one object. The first click is the deepest voxel of the object, each next one
the deepest voxel of the largest connected error, with its sign. The method finds its own window: it knows
the clicks and nothing of the object. Objects under 100 voxels are left out and counted. Instead of the
first click there may be a box, drawn around the object with an unsteady hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import find_cases
from medsam_app.datasets.gathering import Dataset
from medsam_app.errors import MedsamError, VolumeError
from medsam_app.evaluate.cases import Skipped, Taken, check_labels, take_cases
from medsam_app.evaluate.click_through import CaseInfo, CaseScores, ClickPlan, evaluate_case
from medsam_app.evaluate.comparison import Comparison, compare
from medsam_app.evaluate.gallery import Gallery
from medsam_app.evaluate.methods import load_methods
from medsam_app.evaluate.options import EvaluateOptions
from medsam_app.evaluate.protocols import Methods
from medsam_app.evaluate.summary import TARGETS, Summary, summarise
from medsam_app.measure.scores import MIN_VOXELS, FalseLabel, Score
from medsam_app.models.table import DEFAULT_MODEL
from medsam_app.predict.model_choice import ModelChoice
from medsam_app.progress import Progress

__all__ = ["Evaluation", "Skipped", "evaluate_folder", "run_evaluation"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation and its settings.

    Attributes:
        folder, layout: where the cases are, and what that was understood to be.
        split: which of them were measured, empty for all.
        datasets, labels, first, seed, refine, most_cases, targets, tolerance: as in
            `EvaluateOptions`.
        clicks, shown: how many were made, and after which means are given.
        distances: whether surfaces were measured.
        model: name of the model; weights_sha256, adapter: what it ran with ('' for no adapter).
        scores: every object after every click, by every method.
        summaries: of the model with its adapter, without it, the baselines, told the label, without prompts.
        comparisons: differences of pairs of these.
        false_labels: labels that methods without prompts found where there are none.
        small: objects left out because they have fewer than `MIN_VOXELS` voxels.
        skipped: cases that could not be measured.
    """

    folder: str
    layout: str
    split: str
    datasets: tuple[str, ...]
    labels: tuple[str, ...]
    first: str
    clicks: int
    shown: tuple[int, ...]
    targets: tuple[float, ...]
    distances: bool
    tolerance: float | None
    seed: int
    refine: bool
    most_cases: int | None
    model: str
    weights_sha256: str
    adapter: str
    scores: tuple[Score, ...]
    summaries: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    false_labels: tuple[FalseLabel, ...]
    small: int
    skipped: tuple[Skipped, ...]


def evaluate_folder(  # noqa: PLR0913 - public, by keyword
    dataset: str | Path | Dataset,
    *,
    split: str | None = None,
    datasets: Sequence[str] = (),
    labels: Sequence[str] = (),
    clicks: int | Sequence[int] = 10,
    targets: Sequence[float] = TARGETS,
    first: str = "click",
    distances: bool = True,
    tolerance: float | None = None,
    model: str = DEFAULT_MODEL,
    weights: Path | None = None,
    adapter: Path | None = None,
    base: bool = False,
    device: str = "auto",
    refine: bool = False,
    baselines: Sequence[str] = (),
    nets: Sequence[Path] = (),
    most_cases: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    skip: Callable[[Skipped], None] | None = None,
    gallery: Gallery | None = None,
) -> Evaluation:
    """Measure a model, and other methods for comparison, on labelled volumes.

    Args:
        dataset: a folder or list that `medsam_app.datasets.find.find_cases` knows, or what that found.
        split, datasets: which cases, see `take_cases`.
        labels: names or values of the labels that are measured; none named for all.
        clicks: on each object; or the numbers of clicks after which means are given, the largest of which
            is how many are made.
        targets: Dice values whose number of clicks is counted, each above 0 and up to 1.
        first: "click", "box" instead of the first click, or "found": see `EvaluateOptions.first`.
        distances: whether surface Dice and HD95 are measured after the clicks that are shown.
        tolerance: of the surface Dice in mm; None for the largest side of a voxel of each volume.
        model, weights, adapter, device: as for `VolumePredictor`.
        base: whether the model without its adapter is measured too, and the difference.
        refine: draw the outlines of large objects in tiles; takes seconds a click.
        baselines: names of `medsam_app.evaluate.classical.BASELINES`.
        nets: files of networks that `medsam-app finetune --baseline` has written.
        most_cases: at most this many per dataset, evenly spread.
        seed: of boxes, of resampling and of fresh weights.
        progress: called with a sentence and a fraction done.
        tell: called with sentences about the selected cases before the measurement starts.
        skip: called with a case that cannot be measured, when it is met.
        gallery: gets a picture of each case.

    Raises:
        DatasetError: no labelled cases are found.
        VolumeError: no usable manifest, no case that can be read, no object large enough.
        SettingsError: an unknown split, dataset, label, baseline or first prompt, or a number out of range.
        ModelError, AdapterError: from loading the model.
    """
    options = EvaluateOptions(
        model=ModelChoice(name=model, weights=weights, adapter=adapter, device=device),
        base=base,
        baselines=tuple(baselines),
        nets=tuple(nets),
        split=split,
        datasets=tuple(datasets),
        most_cases=most_cases,
        labels=tuple(labels),
        clicks=clicks if isinstance(clicks, int) else tuple(clicks),
        targets=tuple(targets),
        first=first,
        distances=distances,
        tolerance=tolerance,
        refine=refine,
        seed=seed,
    )
    return run_evaluation(dataset, options, progress=progress, tell=tell, skip=skip, gallery=gallery)


def run_evaluation(
    dataset: str | Path | Dataset,
    options: EvaluateOptions,
    *,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    skip: Callable[[Skipped], None] | None = None,
    gallery: Gallery | None = None,
) -> Evaluation:
    """Run `evaluate_folder` with checked options."""
    dataset = dataset if isinstance(dataset, Dataset) else find_cases(dataset)
    taken = take_cases(dataset, split=options.split, datasets=options.datasets, most=options.most_cases)
    check_labels(options.labels, taken.cases)
    if tell is not None:
        for sentence in (taken.said, *taken.warnings):
            tell(sentence)
    methods = load_methods(options)
    shown, seed = options.shown, options.seed
    plan = ClickPlan(
        clicks=shown[-1],
        shown=shown if options.distances else (),
        first=options.first,
        seed=seed,
        tolerance=options.tolerance,
        labels=options.labels,
    )
    found, skipped = _measure(taken, methods, plan, progress=progress, skip=skip, gallery=gallery)
    scores = found.scores
    return Evaluation(
        folder=str(dataset.path),
        layout=dataset.layout,
        split=taken.split,
        datasets=options.datasets,
        labels=options.labels,
        first=options.first,
        clicks=shown[-1],
        shown=shown,
        targets=options.targets,
        distances=options.distances,
        tolerance=options.tolerance,
        seed=seed,
        refine=options.refine,
        most_cases=options.most_cases,
        model=options.model.name,
        weights_sha256=methods.weights_sha256,
        adapter=methods.adapter,
        scores=tuple(scores),
        summaries=summarise(scores, shown=shown, targets=options.targets, false=found.false, seed=seed),
        comparisons=compare(scores, methods.pairs, shown=shown, seed=seed),
        false_labels=tuple(found.false),
        small=found.small,
        skipped=tuple(skipped),
    )


def _measure(
    taken: Taken,
    methods: Methods,
    plan: ClickPlan,
    *,
    progress: Progress | None,
    skip: Callable[[Skipped], None] | None,
    gallery: Gallery | None,
) -> tuple[CaseScores, list[Skipped]]:
    """Measure all cases; return their scores and the skipped cases."""
    whole, skipped = CaseScores(), []

    def leave_out(case: Skipped) -> None:
        skipped.append(case)
        if skip is not None:
            skip(case)

    for case in taken.skipped:
        leave_out(case)
    read = 0
    for number, each in enumerate(taken.cases):
        here = _telling(progress, each, number / len(taken.cases), 1 / len(taken.cases))
        here("reading", 0.0)
        try:
            volume, label_map = each.load()
        except MedsamError as error:
            leave_out(Skipped(each.dataset, each.case, str(error)))
            continue
        read += 1
        found = evaluate_case(
            methods,
            volume,
            label_map,
            plan=plan,
            about=CaseInfo(dataset=each.dataset, modality=each.modality, case=each.case, names=each.names),
            progress=here,
            gallery=gallery,
        )
        whole.scores += found.scores
        whole.small += found.small
        whole.false += found.false
    if not whole.scores:
        which = f" of split '{taken.split}'" if taken.split else ""
        wanted = f" that were asked for ({', '.join(plan.labels)})" if plan.labels else ""
        raise VolumeError(
            f"Nothing was measured: of {len(taken.cases)} cases{which} {read} could be read, and none "
            f"of their labels{wanted} has {MIN_VOXELS} voxels or more."
        )
    return whole, skipped


def _telling(progress: Progress | None, case: Case, start: float, share: float) -> Progress:
    """Progress within a case as progress of the whole."""

    def tell(what: str, done: float) -> None:
        if progress is not None:
            progress(f"{case.dataset}, {case.case}: {what}", start + done * share)

    return tell
