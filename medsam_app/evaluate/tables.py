"""The tables of an evaluation, as text in cells, for the terminal and for the report alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medsam_app.evaluate.bootstrap import Mean
from medsam_app.evaluate.summary import SPOILT, Group, Summary
from medsam_app.measure.scores import MIN_VOXELS

if TYPE_CHECKING:  # heavy
    from medsam_app.evaluate.run import Evaluation

#: How the groups of a table are called.
KINDS = {"dataset": "dataset", "modality": "modality", "size": "size of the object", "label": "label"}


@dataclass
class Sheet:
    """A table.

    Attributes:
        columns: titles.
        text: how many columns from the left hold words; the others hold numbers.
        sections: rows that belong together.
    """

    title: str
    columns: list[str]
    text: int
    sections: list[list[list[str]]] = field(default_factory=list)


def sheets(found: Evaluation) -> list[Sheet]:
    """All tables."""
    made = [_groups(found, kind) for kind in KINDS]
    if found.distances:
        made += [
            _surfaces(found, "surface_dice", f"Surface Dice ({_tolerance(found)}) by dataset"),
            _surfaces(found, "hd95", "HD95 in mm by dataset"),
        ]
    if found.comparisons:
        made.append(_comparisons(found))
    return [*made, _methods(found)]


def remarks(found: Evaluation) -> list[str]:
    """Return remarks that the tables do not show, in sentences."""
    said = [
        f"{_objects(found)} objects; {found.small} under {MIN_VOXELS} voxels were left out. "
        "In brackets: 95 % intervals, from resampled cases."
    ]
    if found.distances:
        undefined = [_undefined(summary) for summary in found.summaries if _undefined(summary)]
        if undefined:
            said.append(
                f"HD95 is not defined of an empty mask and left out of its means: {'; '.join(undefined)}."
            )
    for summary in found.summaries:
        if summary.clicks > 1:
            said.append(_harm(summary))
        if summary.clicks == 0:
            said.append(
                f"{summary.method}: {summary.false_labels} labels found in cases that have none of them."
            )
    return said


def count_name(n: int, first: str) -> str:
    """Return the column title for n prompts."""
    if n == 0:
        return "no prompt"
    if first == "box":
        return "box" if n == 1 else f"box + {n - 1} click{'s' if n > 2 else ''}"
    return f"{n} click{'s' if n > 1 else ''}"


def mean_text(mean: Mean | None, digits: int = 3, sign: str = "") -> str:
    """'0.705 (0.68-0.73)', which may be wrapped between the two; of one case the value alone."""
    if mean is None:
        return ""
    if mean.value is None or mean.low is None or mean.high is None:
        return "not defined"
    text = f"{mean.value:{sign}.{digits}f}"
    if mean.low == mean.high:
        return text
    narrow, between = (digits, " to ") if sign else (max(1, digits - 1), "-")
    return f"{text} ({mean.low:{sign}.{narrow}f}{between}{mean.high:{sign}.{narrow}f})"


def _numbers(found: Evaluation) -> list[int]:
    """Numbers of clicks that have a column."""
    without = any(summary.clicks == 0 for summary in found.summaries)
    clicked = any(summary.clicks for summary in found.summaries)
    return [*([0] if without else []), *(found.shown if clicked else [])]


def _wanted(found: Evaluation, kinds: Sequence[str]) -> list[Group]:
    """The groups of some kinds that any method has, in the order of the methods."""
    groups: dict[tuple[str, str], Group] = {}
    for summary in found.summaries:
        for each in summary.groups:
            if each.kind in kinds:
                groups.setdefault((each.kind, each.name), each)
    return sorted(groups.values(), key=lambda each: kinds.index(each.kind))


def _groups(found: Evaluation, kind: str) -> Sheet:
    """Mean Dice after some clicks of each group, all methods one below the other, and of all objects."""
    return _measure(found, "dice", kind, f"Mean Dice by {KINDS[kind]}")


def _surfaces(found: Evaluation, measure: str, title: str) -> Sheet:
    return _measure(found, measure, "dataset", title)


def _measure(found: Evaluation, measure: str, kind: str, title: str) -> Sheet:
    numbers = _numbers(found)
    columns = [kind, "method", "objects", *(count_name(n, found.first) for n in numbers)]
    sheet = Sheet(title, columns, text=2)
    digits = 1 if measure == "hd95" else 3
    for group in _wanted(found, [kind, "objects", *(["datasets"] if kind == "dataset" else [])]):
        rows: list[list[str]] = []
        for summary in found.summaries:
            own = summary.group(group.kind, group.name)
            if own is not None:
                means: dict[int, Mean] = getattr(own, measure)
                cells = [mean_text(means.get(n), digits) for n in numbers]
                rows.append(["" if rows else own.name, summary.method, str(own.objects), *cells])
        sheet.sections.append(rows)
    return sheet


def _comparisons(found: Evaluation) -> Sheet:
    shown = list(found.comparisons[0].dice)
    columns = ["method", "less", "objects", "cases", *(count_name(n, found.first) for n in shown)]
    sheet = Sheet("Difference of the mean Dice, on the same objects", columns, text=2)
    for each in found.comparisons:
        cells = [mean_text(each.dice.get(n), 3, sign="+") for n in shown]
        sheet.sections.append([[each.method, each.against, str(each.objects), str(each.cases), *cells]])
    return sheet


def _methods(found: Evaluation) -> Sheet:
    columns = ["method"]
    for target in found.targets:
        columns += [f"to Dice {target:.2f}", "never"]
    sheet = Sheet("Clicks", [*columns, "all clicks honoured", "seconds a click"], text=1)
    rows = []
    for summary in found.summaries:
        if summary.clicks == 0:
            blank = [""] * (2 * len(found.targets) + 1)
            rows.append([summary.method, *blank, f"{summary.seconds:.2f} a volume"])
            continue
        cells = []
        for reach in summary.reach:
            cells += [mean_text(reach.clicks, 1), f"{100 * reach.never:.1f} %"]
        rows.append([summary.method, *cells, f"{100 * summary.honoured:.1f} %", f"{summary.seconds:.2f}"])
    sheet.sections.append(rows)
    return sheet


def _harm(summary: Summary) -> str:
    """Describe where clicks made masks worse, in a sentence."""
    whole = summary.group("objects")
    steps = summary.clicks - (0 if whole is not None and 0 in whole.dice else 1)
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


def _undefined(summary: Summary) -> str:
    """'sam3d_tiny 3 of 40 objects after 1 click, ...' or nothing."""
    whole = summary.group("objects")
    if whole is None:
        return ""
    counted = [
        f"{mean.undefined} of {whole.objects} objects at {count_name(n, 'click')}"
        for n, mean in whole.hd95.items()
        if mean.undefined
    ]
    return f"{summary.method} {', '.join(counted)}" if counted else ""


def _objects(found: Evaluation) -> int:
    return max(
        each.objects for summary in found.summaries for each in summary.groups if each.kind == "objects"
    )


def _tolerance(found: Evaluation) -> str:
    return "within one voxel" if found.tolerance is None else f"within {found.tolerance:g} mm"
