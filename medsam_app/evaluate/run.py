"""Evaluation of models on labelled volumes by the clicks of a careful simulated user.

    medsam-app evaluate DATASET --adapter liver.safetensors --base --csv scores.csv --report report.html

Each label of each case is one object. The first click is the deepest voxel of the object, each following one
the deepest voxel of the largest connected error, with its sign. The method chooses its own window from the
clicks alone. Objects under 100 voxels are left out and counted. A box with randomly jittered sides can
replace the first click.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_app._version import __version__
from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import find_cases
from medsam_app.datasets.gathering import Dataset
from medsam_app.errors import MedsamError, VolumeError
from medsam_app.evaluate.cases import SelectedCases, Skipped, check_labels, select_cases
from medsam_app.evaluate.click_through import CaseInfo, CaseScores, ClickPlan, evaluate_case
from medsam_app.evaluate.comparison import Comparison, compare
from medsam_app.evaluate.gallery import Gallery
from medsam_app.evaluate.methods import load_methods
from medsam_app.evaluate.options import EvaluateOptions
from medsam_app.evaluate.partial import PartialResults, state_of_files
from medsam_app.evaluate.protocols import Methods
from medsam_app.evaluate.summary import TARGETS, Summary, summarise
from medsam_app.measure.scores import MIN_VOXELS, FalseLabel, Score
from medsam_app.models.download import sha256_of
from medsam_app.models.table import DEFAULT_MODEL
from medsam_app.predict.model_choice import ModelChoice
from medsam_app.progress import Progress

__all__ = ["Evaluation", "Skipped", "evaluate_folder", "run_evaluation"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation and its settings.

    Attributes:
        folder, layout: path of the dataset, and its detected layout.
        split: the measured split, empty for all.
        datasets, labels, first, seed, refine, most_cases, per_case, targets, tolerance: as in
            `EvaluateOptions`.
        clicks, shown: number of clicks made, and numbers of clicks after which means are given.
        distances: whether surface distances were measured.
        model: name of the model.
        weights_sha256, adapter: hash of its weights, and name of its adapter ('' without one).
        scores: one per object, click and method.
        summaries: one per method: the model with its adapter, without it, baselines, with labels, without
            prompts.
        comparisons: differences of pairs of methods.
        false_labels: labels that methods without prompts found in cases that do not have them.
        small: number of objects left out because they have fewer than `MIN_VOXELS` voxels.
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
    per_case: int | None
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
    refine: bool = True,
    baselines: Sequence[str] = (),
    nets: Sequence[Path] = (),
    most_cases: int | None = None,
    per_case: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
    skip: Callable[[Skipped], None] | None = None,
    gallery: Gallery | None = None,
) -> Evaluation:
    """Measure a model, and other methods for comparison, on labelled volumes.

    Args:
        dataset: a folder or list that `medsam_app.datasets.find.find_cases` supports, or its result.
        split, datasets: selection of cases, see `select_cases`.
        labels: names or values of the labels to measure; empty for all.
        clicks: number of clicks per object; or the numbers of clicks after which means are given, the largest
            being the number of clicks made.
        targets: Dice values for which the number of clicks is counted, each above 0 and at most 1.
        first: "click", "box" instead of the first click, or "found": see `EvaluateOptions.first`.
        distances: whether surface Dice and HD95 are measured after the clicks that are shown.
        tolerance: tolerance of the surface Dice in mm; None for the largest voxel side of each volume.
        model, weights, adapter, device: as for `VolumePredictor`.
        base: whether to measure the model without its adapter as well, and the difference.
        refine: draw the outlines of large objects in tiles, as `medsam-app segment` does; takes seconds per
            click.
        baselines: names in `medsam_app.evaluate.classical.BASELINES`.
        nets: network files written by `medsam-app finetune --baseline`.
        most_cases: maximum number of cases per dataset, evenly spread.
        per_case: maximum number of objects per case, evenly spread by size; None for all.
        seed: seed of boxes, resampling and fresh weights.
        progress: called with a sentence and the fraction done.
        tell: called with sentences about the selected cases before the measurement starts.
        skip: called with each case that cannot be measured, as soon as this is detected.
        gallery: receives a picture of each case.

    Raises:
        DatasetError: no labelled cases are found.
        VolumeError: no usable manifest, no readable case, or no object that is large enough.
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
        per_case=per_case,
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
    partial: Callable[[Mapping[str, Any]], PartialResults] | None = None,
) -> Evaluation:
    """Run `evaluate_folder` with checked options.

    Args:
        dataset, options, progress, tell, skip, gallery: as for `evaluate_folder`.
        partial: opens the results of an interrupted run with these settings; each case is added to them. None
            to keep results in memory only.
    """
    dataset = dataset if isinstance(dataset, Dataset) else find_cases(dataset)
    selection = select_cases(dataset, split=options.split, datasets=options.datasets, most=options.most_cases)
    check_labels(options.labels, selection.cases)
    if tell is not None:
        for sentence in (selection.description, *selection.warnings):
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
        per_case=options.per_case,
    )
    results = None if partial is None else partial(_determining(options, methods))
    if results is not None and results.resumed and tell is not None:
        tell(f"{results.path.name} already holds {results.resumed} measured cases.")
    measured, skipped = _measure(
        selection, methods, plan, progress=progress, skip=skip, gallery=gallery, results=results
    )
    scores = measured.scores
    return Evaluation(
        folder=str(dataset.path),
        layout=dataset.layout,
        split=selection.split,
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
        per_case=options.per_case,
        model=options.model.name,
        weights_sha256=methods.weights_sha256,
        adapter=methods.adapter,
        scores=tuple(scores),
        summaries=summarise(scores, shown=shown, targets=options.targets, false=measured.false, seed=seed),
        comparisons=compare(scores, methods.pairs, shown=shown, seed=seed),
        false_labels=tuple(measured.false),
        small=measured.small,
        skipped=tuple(skipped),
    )


def _determining(options: EvaluateOptions, methods: Methods) -> dict[str, Any]:
    """Return the settings that determine the scores of a case, as JSON values."""
    adapter = options.model.adapter
    return {
        "version": __version__,
        "model": options.model.name,
        "weights": methods.weights_sha256,
        "adapter": None if adapter is None else sha256_of(adapter),
        "base": options.base,
        "baselines": options.baselines,
        "nets": [sha256_of(net) for net in options.nets],
        "labels": options.labels,
        "per case": options.per_case,
        "clicks": options.shown,
        "first": options.first,
        "distances": options.distances,
        "tolerance": options.tolerance,
        "refine": options.refine,
        "seed": options.seed,
    }


def _measure(
    selection: SelectedCases,
    methods: Methods,
    plan: ClickPlan,
    *,
    progress: Progress | None,
    skip: Callable[[Skipped], None] | None,
    gallery: Gallery | None,
    results: PartialResults | None,
) -> tuple[CaseScores, list[Skipped]]:
    """Measure all cases that have no results yet; return the scores of all, and the skipped cases."""
    total, skipped = CaseScores(), []

    def leave_out(case: Skipped) -> None:
        skipped.append(case)
        if skip is not None:
            skip(case)

    for missing in selection.skipped:
        leave_out(missing)
    count = 0
    for number, case in enumerate(selection.cases):
        case_progress = _case_progress(
            progress, case, number / len(selection.cases), 1 / len(selection.cases)
        )
        case_progress("reading", 0.0)
        key = (case.dataset, case.modality, case.case)
        files = "" if results is None else state_of_files(case.image, *case.channels, case.label)
        case_scores = None if results is None else results.take(key, files, gallery)
        if case_scores is None:
            try:
                volume, label_map = case.load()
            except MedsamError as error:
                leave_out(Skipped(case.dataset, case.case, str(error)))
                continue
            case_scores = evaluate_case(
                methods,
                volume,
                label_map,
                plan=plan,
                about=CaseInfo(
                    dataset=case.dataset, modality=case.modality, case=case.case, names=case.names
                ),
                progress=case_progress,
                gallery=gallery,
            )
            if results is not None:
                results.add(key, files, case_scores, gallery)
        count += 1
        total.scores += case_scores.scores
        total.small += case_scores.small
        total.false += case_scores.false
    if not total.scores:
        of_split = f" of split '{selection.split}'" if selection.split else ""
        requested = f" that were asked for ({', '.join(plan.labels)})" if plan.labels else ""
        raise VolumeError(
            f"Nothing was measured: of {len(selection.cases)} cases{of_split} {count} could be read, and "
            f"none of their labels{requested} has {MIN_VOXELS} voxels or more."
        )
    return total, skipped


def _case_progress(progress: Progress | None, case: Case, start: float, share: float) -> Progress:
    """Return a callback that maps progress within a case to progress of the whole run."""

    def report_progress(text: str, done: float) -> None:
        if progress is not None:
            progress(f"{case.dataset}, {case.case}: {text}", start + done * share)

    return report_progress
