"""Fingerprint of a dataset: statistics of images and labels, and all problems.

As in nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), later choices such as spacing, intensity
window and ROI size are derived from the fingerprint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_app.datasets.fingerprint_case import CaseFacts, inspect_case
from medsam_app.datasets.gathering import Dataset, Problem
from medsam_app.datasets.label_census import LabelFacts, percentiles
from medsam_app.progress import Progress

#: Largest number of voxels per case for the percentiles over all cases.
_POOLED = 5_000
#: Largest number of values or cases named in one sentence.
_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Minimum, median and maximum of a quantity along (i, j, k)."""

    min: tuple[float, ...]
    median: tuple[float, ...]
    max: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Intensities of all images of one modality; different modalities are not comparable.

    Attributes:
        modality: DICOM modality, empty if unknown.
        cases: number of images that could be read.
        whole: percentiles by per cent, of up to 5000 voxels per case.
        inside: percentiles of the voxels with a label, None if there are none.
    """

    modality: str
    cases: int
    whole: dict[float, float] | None
    inside: dict[float, float] | None


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Statistics of one label value over the cases of a dataset.

    Attributes:
        dataset: name of the dataset.
        value: label value.
        name: name of the label, or None.
        cases: number of cases with the label.
        voxels: number of voxels in all cases.
        ml_min, ml_median, ml_max: volume in these cases in millilitres.
        mm_median, mm_95: median and 95th percentile of the longest side of the bounding box in mm.
        piece_mm_median, piece_mm_95: the same for the largest connected component.
    """

    dataset: str
    value: int
    name: str | None
    cases: int
    voxels: int
    ml_min: float
    ml_median: float
    ml_max: float
    mm_median: float
    mm_95: float
    piece_mm_median: float
    piece_mm_95: float


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Statistics and problems of a dataset.

    Attributes:
        path: folder or list of the dataset.
        layout: description of the layout.
        usable, unusable: number of usable and unusable cases. Cases without an image or label map count as
            unusable, but are not in `cases`.
        splits, modalities, orientations: number of cases by value, without unknown values.
        shape: voxels along the axes of each file, (i, j, k); None if no image could be read.
        spacing: voxel size in mm along (i, j, k); None if no image could be read.
        intensities: intensities by modality, that with the most cases first.
        labels: label values above 0.
        problems: all problems, errors first.
        cases: all cases that were read, usable or not.
    """

    path: str
    layout: str
    usable: int
    unusable: int
    splits: dict[str, int]
    modalities: dict[str, int]
    orientations: dict[str, int]
    shape: Spread | None
    spacing: Spread | None
    intensities: tuple[Intensities, ...]
    labels: tuple[LabelSummary, ...]
    problems: tuple[Problem, ...]
    cases: tuple[CaseFacts, ...]


def fingerprint(dataset: Dataset, *, progress: Progress | None = None) -> Fingerprint:
    """Read all cases, one at a time, and return statistics and problems.

    Percentiles of large volumes are computed from evenly spaced voxels (see
    `medsam_app.datasets.fingerprint_case`), and those over all cases from up to 5000 evenly spaced voxels per
    case. The result is deterministic.

    Args:
        dataset: result of `medsam_app.datasets.find.find_cases`.
        progress: called with a sentence and the fraction done.
    """
    facts: list[CaseFacts] = []
    problems = list(dataset.problems)
    contents: dict[str, list[CaseFacts]] = {}
    pools: dict[str, list[tuple[NDArray, NDArray]]] = {}
    for number, case in enumerate(dataset.cases):
        if progress is not None:
            progress(f"{case.dataset}, {case.case}", number / len(dataset.cases))
        inspected = inspect_case(case)
        facts.append(inspected.facts)
        problems += inspected.problems
        if inspected.content is not None:
            contents.setdefault(inspected.content, []).append(inspected.facts)
            pools.setdefault(inspected.facts.modality, []).append(
                (_evenly_spaced(inspected.sample), _evenly_spaced(inspected.inside))
            )
    problems += _copies(contents.values()) + _names(dataset, facts)
    readable = [case for case in facts if case.shape is not None]
    usable = sum(case.usable for case in facts)
    missing = {(p.dataset, p.case) for p in dataset.problems if p.severity == "error"}
    return Fingerprint(
        path=str(dataset.path),
        layout=dataset.layout,
        usable=usable,
        unusable=len(facts) - usable + len(missing),
        splits=_count(case.split for case in facts),
        modalities=_count(case.modality for case in facts),
        orientations=_count(case.orientation or "" for case in facts),
        shape=_spread([case.shape for case in readable if case.shape is not None]),
        spacing=_spread([case.spacing for case in readable if case.spacing is not None]),
        intensities=_intensities(pools),
        labels=_labels(facts),
        problems=tuple(sorted(problems, key=lambda problem: problem.severity)),
        cases=tuple(facts),
    )


def _evenly_spaced(values: NDArray) -> NDArray[np.float32]:
    """Return (n,) up to `_POOLED` evenly spaced values of (m,); a case with fewer values has less weight."""
    return values[:: -(-values.size // _POOLED) or 1].astype(np.float32)


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(value for value in values if value).most_common())


def _spread(rows: Sequence[tuple[float, ...]]) -> Spread | None:
    """Return the spread along each axis, or None without rows."""
    if not rows:
        return None
    table = np.asarray(rows, dtype=float)
    low, middle, high = table.min(axis=0), np.median(table, axis=0), table.max(axis=0)
    return Spread(min=tuple(low.tolist()), median=tuple(middle.tolist()), max=tuple(high.tolist()))


def _intensities(pools: dict[str, list[tuple[NDArray, NDArray]]]) -> tuple[Intensities, ...]:
    return tuple(
        Intensities(
            modality=modality,
            cases=len(samples),
            whole=percentiles(np.concatenate([whole for whole, _ in samples])),
            inside=percentiles(np.concatenate([inside for _, inside in samples])),
        )
        for modality, samples in sorted(pools.items(), key=lambda pool: -len(pool[1]))
    )


def _labels(facts: Sequence[CaseFacts]) -> tuple[LabelSummary, ...]:
    by_label: dict[tuple[str, int, str], list[LabelFacts]] = {}
    for case in facts:
        for label in case.labels:
            by_label.setdefault((case.dataset, label.value, label.name or ""), []).append(label)
    return tuple(_summary(key, labels) for key, labels in sorted(by_label.items()))


def _summary(key: tuple[str, int, str], labels: Sequence[LabelFacts]) -> LabelSummary:
    dataset, value, name = key
    volumes = [label.ml for label in labels]
    extents = [max(label.extent_mm) for label in labels]
    pieces = [max(label.piece_mm) for label in labels]
    return LabelSummary(
        dataset=dataset,
        value=value,
        name=name or None,
        cases=len(labels),
        voxels=sum(label.voxels for label in labels),
        ml_min=min(volumes),
        ml_median=float(np.median(volumes)),
        ml_max=max(volumes),
        mm_median=float(np.median(extents)),
        mm_95=float(np.percentile(extents, 95)),
        piece_mm_median=float(np.median(pieces)),
        piece_mm_95=float(np.percentile(pieces, 95)),
    )


def _copies(groups: Iterable[list[CaseFacts]]) -> list[Problem]:
    """Return problems for images with equal content in several files.

    A file that is listed twice is reported by `CaseCollector.finish`.
    """
    problems = []
    for cases in groups:
        files = {Path(case.image).resolve() for case in cases}
        if len(files) < 2:
            continue
        splits = sorted({case.split for case in cases if case.split})
        across = f", in the splits {' and '.join(splits)}" if len(splits) > 1 else ""
        names = first_few(case.case for case in cases)
        problems.append(
            _warning(
                "same image twice",
                cases[0].dataset,
                f"{len(files)} files hold the same image ({names}){across}; keep one, "
                "so that nothing is learned twice or measured on what was learned.",
                case=cases[0].case,
            )
        )
    return problems


def _names(dataset: Dataset, facts: Sequence[CaseFacts]) -> list[Problem]:
    """Return problems for values without a name and names without a voxel, once per dataset."""
    values_with_voxels: dict[str, set[int]] = {}
    unnamed: dict[str, dict[int, list[str]]] = {}
    for case in facts:
        values_with_voxels.setdefault(case.dataset, set()).update(label.value for label in case.labels)
        for label in case.labels:
            if label.name is None:
                unnamed.setdefault(case.dataset, {}).setdefault(label.value, []).append(case.case)
    problems = []
    for name, by_value in unnamed.items():
        for value, cases in sorted(by_value.items())[:_NAMED]:
            message = (
                f"Label value {value} has no name ({_cases(cases)}); give it one in {dataset.names_in}, or "
                "correct the label maps."
            )
            problems.append(_warning("value without a name", name, message))
        if len(by_value) > _NAMED:
            message = (
                f"{len(by_value) - _NAMED} more label values have no name either; where there are so many, "
                "check that the label map is not an image."
            )
            problems.append(_warning("value without a name", name, message))
    declared = dict.fromkeys(
        (case.dataset, value, name) for case in dataset.cases for value, name in case.names.items()
    )
    for name, value, text in declared:
        if values_with_voxels[name] and value not in values_with_voxels[name]:
            message = (
                f"The label {value} ({text}) is named, but no label map that could be read has a voxel of "
                f"it; check the label maps, or take the name out of {dataset.names_in}."
            )
            problems.append(_warning("name without a voxel", name, message))
    return problems


def _warning(kind: str, dataset: str, message: str, *, case: str = "") -> Problem:
    return Problem(severity="warning", kind=kind, dataset=dataset, case=case, message=message)


def _cases(names: Sequence[str]) -> str:
    return f"in {len(names)} case{'' if len(names) == 1 else 's'}: {first_few(names)}"


def first_few(values: Iterable[object]) -> str:
    """Return the first few values as text, and the number of further ones."""
    texts = [str(value) for value in values]
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")
