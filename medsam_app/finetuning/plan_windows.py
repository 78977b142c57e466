"""Choice of a plan's windows: spacing, size and range of intensities."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medsam_app.datasets.fingerprint import Intensities
from medsam_app.datasets.fingerprint_case import CaseFacts

#: Smallest side of a planned window unless the volumes are smaller, so that it shows the surroundings too.
_LEAST_SIDE = 32
#: Fraction of the window's side that the longest objects fill.
_FILLED = 0.75
#: Voxels that the smallest label should have along its longest side.
_SMALLEST = 6
#: Margin around the labels' range of intensities in CT: fraction of the range, and least margin in HU.
_MARGIN, _MARGIN_HU = 0.5, 150.0
#: RAS axis of each direction.
_RAS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class Objects:
    """Sizes of objects in mm.

    Attributes:
        finest: median over the cases of the finest spacing along any axis.
        longest: 95th percentile of the longest side of a label's largest connected component. A window must
            show one of many lesions in a brain well, but not all of them.
        smallest: median longest side of the label for which that is smallest.
        volume: median size of the volumes along the RAS axes.
    """

    finest: float
    longest: float
    smallest: float
    volume: tuple[float, float, float]


def measure_objects(cases: Sequence[CaseFacts], values: Collection[int]) -> Objects:
    """Return the sizes of objects in usable cases.

    Args:
        cases: usable cases, at least one with a label of these values.
        values: values of the labels that are learned.
    """
    longest: dict[int, list[float]] = {}
    volumes, finest = [], []
    for case in cases:
        for label in case.labels:
            if label.value in values:
                longest.setdefault(label.value, []).append(max(label.piece_mm))
        if case.shape and case.spacing and case.orientation:
            finest.append(min(case.spacing))
            volume = [0.0, 0.0, 0.0]
            for code, voxels, mm in zip(case.orientation, case.shape, case.spacing, strict=True):
                volume[_RAS[code]] = voxels * mm
            volumes.append(volume)
    right, front, up = np.median(volumes, axis=0).tolist()
    return Objects(
        finest=float(np.median(finest)),
        longest=float(np.percentile(np.concatenate(list(longest.values())), 95)),
        smallest=min(float(np.median(lengths)) for lengths in longest.values()),
        volume=(right, front, up),
    )


def choose_spacing(objects: Objects, side: int) -> tuple[float, str]:
    """Return the isotropic spacing in mm, and the reason for it.

    Args:
        objects: sizes of the objects.
        side: most voxels along an axis of the window.
    """
    for_longest = objects.longest / (_FILLED * side)
    for_smallest = objects.smallest / _SMALLEST
    if for_longest <= objects.finest:
        return _rounded(objects.finest), f"the volumes' own finest; objects of {_mm(objects.longest)} fit"
    if for_longest <= for_smallest:
        return _rounded(for_longest), f"objects of {_mm(objects.longest)} fill {_FILLED:.0%} of {side} voxels"
    spacing = max(objects.finest, for_smallest)
    reason = f"the smallest label, of {_mm(objects.smallest)}, has {objects.smallest / spacing:.0f} voxels"
    if objects.longest > side * spacing:
        reason += f"; objects of {_mm(objects.longest)} exceed a window and are seen in several"
    return _rounded(spacing), reason


def choose_window(
    objects: Objects, spacing: float, side: int, multiple: int
) -> tuple[tuple[int, int, int], str]:
    """Return the voxels of a window along the RAS axes, and the reason for them.

    Args:
        objects: sizes of the objects.
        spacing: isotropic voxel size in mm.
        side: most voxels along an axis.
        multiple: divisor of the sides.
    """
    most = side // multiple * multiple
    for_objects = _up(objects.longest / _FILLED / spacing, multiple)
    cube = min(most, max(for_objects, _LEAST_SIDE))
    # Round to the nearest multiple: a window may miss a few voxels at the edge of the volume.
    least = min(cube, _up(objects.longest / spacing, multiple))
    right, front, up = (
        min(cube, max(least, multiple * round(mm / spacing / multiple))) for mm in objects.volume
    )
    if for_objects > most:
        reason = f"{most} voxels at most"
    elif cube > for_objects:
        reason = f"{cube} voxels at least, for the surroundings"
    else:
        reason = f"objects of {_mm(objects.longest)} and what is around them"
    if min(right, front, up) < cube:
        reason += "; the volumes are shorter along some axes"
    return (right, front, up), reason


def choose_clip(
    cases: Sequence[CaseFacts], values: Collection[int], intensities: Sequence[Intensities]
) -> tuple[tuple[float, float] | None, str]:
    """Return the lowest and highest intensity passed to the model, or None for no limits, and the reason.

    CT values are comparable between volumes, so the contrast is limited to the range of the labels. A margin
    includes the tissue around them (fat and air next to an organ, bone next to a vessel), within the range of
    the volumes. For other modalities the model uses the range of each window.

    Args:
        cases: cases of the run.
        values: values of the labels that are learned.
        intensities: intensities of complete volumes, by modality.
    """
    modalities = {case.modality for case in cases}
    if "" in modalities:
        return None, "nothing says that it is CT, so each window's own range"
    if any(modality.strip().upper() != "CT" for modality in modalities):
        return None, "not CT alone, so each window's own range"
    within: dict[int, list[dict[float, float]]] = {}
    for case in cases:
        for label in case.labels:
            if label.value in values and label.intensities:
                within.setdefault(label.value, []).append(label.intensities)
    volumes = [entry.whole for entry in intensities if entry.modality in modalities and entry.whole]
    if not within or not volumes:
        return None, "nothing is known of the labels' intensities"
    # Percentiles over the cases, so that metal in one case does not reduce the contrast of all.
    low = min(float(np.percentile([case[0.5] for case in label], 5)) for label in within.values())
    high = max(float(np.percentile([case[99.5] for case in label], 95)) for label in within.values())
    margin = max(_MARGIN_HU, _MARGIN * (high - low))
    lowest = math.floor(max(low - margin, min(low, *(volume[0.5] for volume in volumes))))
    highest = math.ceil(min(high + margin, max(high, *(volume[99.5] for volume in volumes))))
    if lowest >= highest:
        return None, "the labels' intensities are all the same"
    reason = f"CT; labels have {low:.0f} to {high:.0f}, and {margin:.0f} more for what is around them"
    return (float(lowest), float(highest)), reason


def _up(voxels: float, multiple: int) -> int:
    """Round up to a positive multiple."""
    return max(1, math.ceil(voxels / multiple - 1e-6)) * multiple


def _rounded(mm: float) -> float:
    """Round up to three digits."""
    digits = 2 - math.floor(math.log10(mm))
    return round(math.ceil(mm * 10**digits - 1e-6) / 10**digits, max(digits, 0))


def _mm(length: float) -> str:
    return f"{length:.3g} mm"
