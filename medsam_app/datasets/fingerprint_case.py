"""Statistics and problems of one labelled case."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_app.datasets.cases import Case
from medsam_app.datasets.gathering import Problem
from medsam_app.datasets.label_census import LabelFacts, label_facts, percentiles
from medsam_app.errors import GridMismatch, MedsamError, SeriesChoice
from medsam_app.grid.geometry import Grid
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import MIN_VOXELS

#: Approximate largest number of voxels for percentiles.
SAMPLED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """Statistics of one case; None or empty if the file could not be read.

    Attributes:
        dataset, case, split, image, label: as in `Case`, with paths as text.
        channels: number of images of the case; only the first one was read.
        modality: modality in the list of cases, otherwise that of the image, otherwise empty.
        usable: whether the case has no errors.
        shape: voxels along (i, j, k).
        spacing: voxel size in mm along (i, j, k).
        orientation: closest axis codes, such as "LPS".
        intensities: percentiles of the voxels by per cent.
        inside: percentiles of the voxels with a label.
        labels: label values above 0 in the label map.
    """

    dataset: str
    case: str
    split: str
    image: str
    label: str
    channels: int
    modality: str
    usable: bool
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    intensities: dict[float, float] | None = None
    inside: dict[float, float] | None = None
    labels: tuple[LabelFacts, ...] = ()


@dataclass(frozen=True)
class Inspected:
    """Result of the inspection of a case.

    Attributes:
        facts: statistics.
        problems: problems of the case.
        content: hash of the voxels of the image; None if it could not be read.
        sample: (n,) evenly spaced voxels of the image.
        inside: (m,) evenly spaced voxels of the image that have a label.
    """

    facts: CaseFacts
    problems: list[Problem]
    content: str | None
    sample: NDArray
    inside: NDArray


@dataclass
class _Problems:
    """Problems of a case while it is read."""

    case: Case
    recorded: list[Problem] = field(default_factory=list)

    def error(self, kind: str, message: str) -> None:
        self.recorded.append(Problem(severity="error", kind=kind, message=message, **self._about))

    def warning(self, kind: str, message: str) -> None:
        self.recorded.append(Problem(severity="warning", kind=kind, message=message, **self._about))

    @property
    def _about(self) -> dict[str, str]:
        return {"dataset": self.case.dataset, "case": self.case.case}


def inspect_case(case: Case) -> Inspected:
    """Read a case and return its statistics and all of its problems.

    Percentiles are computed from every n-th voxel along each axis, and those of voxels with a label from
    every n-th of these voxels in the order of the array. n gives about `SAMPLED` voxels. The result is
    deterministic.
    """
    problems = _Problems(case)
    volume = _read_image(case, problems)
    labels, grid = _read_labels(case, None if volume is None else volume.grid, problems)
    counts = {} if labels is None else count_values(labels)
    if labels is not None and grid is not None:
        _check_sizes(case, counts, problems)
    empty = np.empty(0)
    sample, inside = empty, empty
    if volume is not None:
        sample = evenly(volume.array, SAMPLED)
        if labels is not None and grid is volume.grid:
            inside = volume.array[labels > 0]
            inside = inside[:: -(-inside.size // SAMPLED) or 1]
    statistics: tuple[LabelFacts, ...] = ()
    if labels is not None and grid is not None:
        image = volume.array if volume is not None and grid is volume.grid else None
        statistics = label_facts(labels, grid, counts, case.names, image)
    facts = CaseFacts(
        dataset=case.dataset,
        case=case.case,
        split=case.split,
        image=str(case.image),
        label=str(case.label),
        channels=len(case.channels) or 1,
        modality=case.modality or (volume.modality if volume is not None else None) or "",
        usable=not any(problem.severity == "error" for problem in problems.recorded),
        labels=statistics,
        intensities=percentiles(sample),
        inside=percentiles(inside),
    )
    content = None
    if volume is not None:
        i, j, k = volume.shape
        x, y, z = (round(float(mm), 6) for mm in volume.spacing)
        facts = replace(facts, shape=(i, j, k), spacing=(x, y, z), orientation=volume.grid.orientation)
        # The hash excludes the affine, so that a copy with another header is recognised.
        content = replace(volume, grid=Grid(volume.shape, np.eye(4))).fingerprint
    return Inspected(facts, problems.recorded, content, sample, inside)


def _read_image(case: Case, problems: _Problems) -> Volume | None:
    """Return the image, or None; several frames, channels or series are a problem, and the first is read."""
    chosen: dict[str, Any] = {}
    try:
        while True:
            try:
                volume = load_volume(case.image, **chosen)
                break
            except SeriesChoice as choice:
                problems.error(
                    f"several {_plural(choice.option)}", _several_parts("image", case.image, choice)
                )
                first = choice.choices[0][0]
                chosen[choice.option] = first if choice.option == "series" else int(first)
    except MedsamError as error:
        problems.error("image cannot be read", str(error))
        return None
    for text in volume.notes:
        problems.warning("note on the image", f"{case.image}: {text}")
    return volume


def _several_parts(role: str, path: Path, choice: SeriesChoice) -> str:
    parts = f"{len(choice.choices)} {_plural(choice.option)}"
    kind = "is 4D with" if choice.option == "frame" else "holds"
    return (
        f"The {role} {path} {kind} {parts}, but one 3D volume a case is wanted; save one of them as a file "
        "of its own."
    )


def _plural(option: str) -> str:
    return option if option == "series" else f"{option}s"


def _read_labels(
    case: Case, grid: Grid | None, problems: _Problems
) -> tuple[NDArray[np.integer] | None, Grid | None]:
    """Return the label map and its grid, or None.

    If it is not on the grid of the image, a problem is recorded and its own grid is returned.
    """
    try:
        if grid is not None:
            try:
                return load_mask(case.label, grid), grid
            except GridMismatch as error:
                problems.error("grids differ", str(error))
        grid = load_volume(case.label).grid
        return load_mask(case.label, grid), grid
    except SeriesChoice as choice:
        problems.error(f"several {_plural(choice.option)}", _several_parts("label map", case.label, choice))
    except MedsamError as error:
        problems.error("label map cannot be used", str(error))
    return None, None


def _check_sizes(case: Case, counts: dict[int, int], problems: _Problems) -> None:
    if not counts:
        problems.error(
            "empty label map",
            f"The label map {case.label} has no voxel above 0, so there is nothing to learn from it; draw "
            "the object, or leave the case out.",
        )
    small = {value: voxels for value, voxels in counts.items() if voxels < MIN_VOXELS}
    if small:
        named = ", ".join(
            f"{value}{f' ({case.names[value]})' if value in case.names else ''} has {voxels}"
            for value, voxels in small.items()
        )
        problems.warning(
            "small object",
            f"Labels of {case.label} with fewer than {MIN_VOXELS} voxels: {named}; they are left out when a "
            "model is measured, so check that they are no slips of the brush.",
        )


def count_values(labels: NDArray[np.integer]) -> dict[int, int]:
    """Return the number of voxels of each value above 0 in an (i, j, k) label map.

    The map is processed slice by slice to save memory.
    """
    counts: Counter[int] = Counter()
    for k in range(labels.shape[2]):
        for value, voxels in zip(*np.unique(labels[:, :, k], return_counts=True), strict=True):
            counts[int(value)] += int(voxels)
    return {value: counts[value] for value in sorted(counts) if value != 0}


def evenly(array: NDArray, most: int) -> NDArray:
    """Return (n,) about `most` voxels of an (i, j, k) array, with equal steps along all axes.

    All voxels of a smaller array are returned.
    """
    step = max(1, int(np.ceil((array.size / most) ** (1 / 3))))
    return array[::step, ::step, ::step].ravel()
