"""Tables of an evaluation as text cells, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medsam_app.evaluate.bootstrap import Mean
from medsam_app.evaluate.summary import SPOILT, Group, Summary
from medsam_app.measure.scores import MIN_VOXELS

if TYPE_CHECKING:  # heavy
    from medsam_app.evaluate.run import Evaluation

#: Name of each kind of group in a table.
KINDS = {"dataset": "dataset", "modality": "modality", "size": "size of the object", "label": "label"}


@dataclass
class Sheet:
    """A table.

    Attributes:
        columns: titles.
        text: number of columns, from the left, that contain words; the others contain numbers.
        sections: rows that belong together.
    """

    title: str
    columns: list[str]
    text: int
    sections: list[list[list[str]]] = field(default_factory=list)


def sheets(evaluation: Evaluation) -> list[Sheet]:
    """Return all tables."""
    tables = [_dice_table(evaluation, kind) for kind in KINDS]
    if evaluation.distances:
        tables += [
            _surface_table(
                evaluation, "surface_dice", f"Surface Dice ({_tolerance_text(evaluation)}) by dataset"
            ),
            _surface_table(evaluation, "hd95", "HD95 in mm by dataset"),
        ]
    if evaluation.comparisons:
        tables.append(_comparison_table(evaluation))
    return [*tables, _method_table(evaluation)]


def remarks(evaluation: Evaluation) -> list[str]:
    """Return facts that the tables do not show, in sentences."""
    sentences = [
        f"{_object_count(evaluation)} objects; {evaluation.small} under {MIN_VOXELS} voxels were left out. "
        "In brackets: 95 % intervals, from resampled cases."
    ]
    outlines = "refined, as by 'medsam-app segment'" if evaluation.refine else "not refined"
    limit = f" At most {evaluation.per_case} objects per case." if evaluation.per_case else ""
    sentences.append(f"Outlines of large objects: {outlines}.{limit}")
    if evaluation.distances:
        undefined = [_undefined_text(summary) for summary in evaluation.summaries if _undefined_text(summary)]
        if undefined:
            sentences.append(
                f"HD95 is not defined of an empty mask and left out of its means: {'; '.join(undefined)}."
            )
    for summary in evaluation.summaries:
        if summary.clicks > 1:
            sentences.append(_harm_sentence(summary))
        if (found := summary.reliability) is not None:
            sentences.append(
                f"{summary.method}: mean predicted quality {found.predicted:.2f}, Dice {found.dice:.2f}; "
                f"expected calibration error {found.error:.3f}."
            )
        if summary.clicks == 0:
            sentences.append(
                f"{summary.method}: {summary.false_labels} labels found in cases that have none of them."
            )
    return sentences


def count_name(n: int, first: str) -> str:
    """Return the column title for n prompts."""
    if n == 0:
        return "no prompt"
    if first == "box":
        return "box" if n == 1 else f"box + {n - 1} click{'s' if n > 2 else ''}"
    return f"{n} click{'s' if n > 1 else ''}"


def mean_text(mean: Mean | None, digits: int = 3, sign: str = "") -> str:
    """Return '0.705 (0.68-0.73)', which may wrap between the two; for a single case only the value."""
    if mean is None:
        return ""
    if mean.value is None or mean.low is None or mean.high is None:
        return "not defined"
    text = f"{mean.value:{sign}.{digits}f}"
    if mean.low == mean.high:
        return text
    interval_digits, separator = (digits, " to ") if sign else (max(1, digits - 1), "-")
    return f"{text} ({mean.low:{sign}.{interval_digits}f}{separator}{mean.high:{sign}.{interval_digits}f})"


def _numbers(evaluation: Evaluation) -> list[int]:
    """Return the numbers of clicks that have a column."""
    without = any(summary.clicks == 0 for summary in evaluation.summaries)
    clicked = any(summary.clicks for summary in evaluation.summaries)
    return [*([0] if without else []), *(evaluation.shown if clicked else [])]


def _groups_of(evaluation: Evaluation, kinds: Sequence[str]) -> list[Group]:
    """Return the groups of these kinds that any method has, in the order of the methods."""
    groups: dict[tuple[str, str], Group] = {}
    for summary in evaluation.summaries:
        for group in summary.groups:
            if group.kind in kinds:
                groups.setdefault((group.kind, group.name), group)
    return sorted(groups.values(), key=lambda group: kinds.index(group.kind))


def _dice_table(evaluation: Evaluation, kind: str) -> Sheet:
    """Return the mean Dice after some clicks by group, with one row per method, and over all objects."""
    return _measure_table(evaluation, "dice", kind, f"Mean Dice by {KINDS[kind]}")


def _surface_table(evaluation: Evaluation, measure: str, title: str) -> Sheet:
    return _measure_table(evaluation, measure, "dataset", title)


def _measure_table(evaluation: Evaluation, measure: str, kind: str, title: str) -> Sheet:
    numbers = _numbers(evaluation)
    columns = [kind, "method", "objects", *(count_name(n, evaluation.first) for n in numbers)]
    sheet = Sheet(title, columns, text=2)
    digits = 1 if measure == "hd95" else 3
    for group in _groups_of(evaluation, [kind, "objects", *(["datasets"] if kind == "dataset" else [])]):
        rows: list[list[str]] = []
        for summary in evaluation.summaries:
            matching = summary.group(group.kind, group.name)
            if matching is not None:
                means: dict[int, Mean] = getattr(matching, measure)
                cells = [mean_text(means.get(n), digits) for n in numbers]
                rows.append(["" if rows else matching.name, summary.method, str(matching.objects), *cells])
        sheet.sections.append(rows)
    return sheet


def _comparison_table(evaluation: Evaluation) -> Sheet:
    shown = list(evaluation.comparisons[0].dice)
    columns = ["method", "less", "objects", "cases", *(count_name(n, evaluation.first) for n in shown)]
    sheet = Sheet("Difference of the mean Dice, on the same objects", columns, text=2)
    for comparison in evaluation.comparisons:
        cells = [mean_text(comparison.dice.get(n), 3, sign="+") for n in shown]
        sheet.sections.append(
            [[comparison.method, comparison.against, str(comparison.objects), str(comparison.cases), *cells]]
        )
    return sheet


def _method_table(evaluation: Evaluation) -> Sheet:
    columns = ["method"]
    for target in evaluation.targets:
        columns += [f"to Dice {target:.2f}", "never"]
    sheet = Sheet("Clicks", [*columns, "all clicks honoured", "seconds a click"], text=1)
    rows = []
    for summary in evaluation.summaries:
        if summary.clicks == 0:
            blank = [""] * (2 * len(evaluation.targets) + 1)
            rows.append([summary.method, *blank, f"{summary.seconds:.2f} a volume"])
            continue
        cells = []
        for reach in summary.reach:
            cells += [mean_text(reach.clicks, 1), f"{100 * reach.never:.1f} %"]
        rows.append([summary.method, *cells, f"{100 * summary.honoured:.1f} %", f"{summary.seconds:.2f}"])
    sheet.sections.append(rows)
    return sheet


def _harm_sentence(summary: Summary) -> str:
    """Describe in one sentence where clicks made masks worse."""
    all_objects = summary.group("objects")
    steps = summary.clicks - (0 if all_objects is not None and 0 in all_objects.dice else 1)
    text = (
        f"{summary.method}: {summary.worse} of {steps} further clicks lowered the mean over all objects; "
        f"{summary.spoilt} objects end {SPOILT} or more below their own best"
    )
    if summary.worst is None:
        return f"{text}."
    worst = summary.worst
    return (
        f"{text}, most of all {worst.label} of {worst.dataset}, {worst.case}: "
        f"{worst.best:.3f}, then {worst.last:.3f}."
    )


def _undefined_text(summary: Summary) -> str:
    """Return 'sam3d_tiny 3 of 40 objects after 1 click, ...', or '' if everything is defined."""
    all_objects = summary.group("objects")
    if all_objects is None:
        return ""
    counts = [
        f"{mean.undefined} of {all_objects.objects} objects at {count_name(n, 'click')}"
        for n, mean in all_objects.hd95.items()
        if mean.undefined
    ]
    return f"{summary.method} {', '.join(counts)}" if counts else ""


def _object_count(evaluation: Evaluation) -> int:
    return max(
        group.objects
        for summary in evaluation.summaries
        for group in summary.groups
        if group.kind == "objects"
    )


def _tolerance_text(evaluation: Evaluation) -> str:
    return "within one voxel" if evaluation.tolerance is None else f"within {evaluation.tolerance:g} mm"
