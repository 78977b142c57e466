"""Windows of a plan: the spacing and size that show a dataset's objects, and the intensities in them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from medsam_app.datasets.fingerprint import Intensities
from medsam_app.datasets.fingerprint_case import CaseFacts

#: Sides that are planned are not smaller, unless the volumes are: a window shows surroundings too.
_LEAST_SIDE = 32
#: Part of the window that the longest objects fill.
_FILLED = 0.75
#: Voxels that the smallest label should have along its longest side.
_SMALLEST = 6
#: CT is shown beyond the labels' intensities by this part of their range, and by this many HU at least.
_MARGIN, _MARGIN_HU = 0.5, 150.0
#: Axis of RAS that runs between two directions.
_RAS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class Objects:
    """Sizes of objects in mm.

    Attributes:
        finest: median over the cases of the finest spacing along any axis.
        longest: 95th percentile of the longest side of labels, each by its largest connected piece: of
            lesions all over a brain a window has to show one well, not all.
        smallest: median of the same of the label for which that is the smallest.
        volume: median size of the volumes along RAS axes.
    """

    finest: float
    longest: float
    smallest: float
    volume: tuple[float, float, float]


def measure_objects(cases: Sequence[CaseFacts], values: Collection[int]) -> Objects:
    """Sizes over cases that can be used, at least one of which has a label of these values."""
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
        smallest=min(float(np.median(each)) for each in longest.values()),
        volume=(right, front, up),
    )


def choose_spacing(objects: Objects, side: int) -> tuple[float, str]:
    """Isotropic spacing in mm, and why.

    Args:
        side: most voxels along an axis of the window.
    """
    wanted = objects.longest / (_FILLED * side)
    for_smallest = objects.smallest / _SMALLEST
    if wanted <= objects.finest:
        return _rounded(objects.finest), f"the volumes' own finest; objects of {_mm(objects.longest)} fit"
    if wanted <= for_smallest:
        return _rounded(wanted), f"objects of {_mm(objects.longest)} fill {_FILLED:.0%} of {side} voxels"
    spacing = max(objects.finest, for_smallest)
    small = f"the smallest label, of {_mm(objects.smallest)}, has {objects.smallest / spacing:.0f} voxels"
    if objects.longest > side * spacing:
        small += f"; objects of {_mm(objects.longest)} exceed a window and are seen in several"
    return _rounded(spacing), small


def choose_window(
    objects: Objects, spacing: float, side: int, multiple: int
) -> tuple[tuple[int, int, int], str]:
    """Voxels along RAS axes, and why.

    Args:
        side: most voxels along an axis.
        multiple: sides are multiples of this.
    """
    most = side // multiple * multiple
    for_objects = _up(objects.longest / _FILLED / spacing, multiple)
    cube = min(most, max(for_objects, _LEAST_SIDE))
    # A window of about the volume's size shows it all: a few voxels beyond are not worth another multiple.
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
    """Lowest and highest intensity that the model is shown, None for all, and why.

    In CT a value means the same everywhere, so the range of the labels is worth the contrast. It is widened
    for what lies around them (fat and air next to an organ, bone next to a vessel), but not beyond what the
    volumes hold. Elsewhere there is only the range of each window, which the model takes by itself.

    Args:
        cases: those that are used.
        values: of the labels that are learned.
        intensities: over whole volumes, by modality.
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
    whole = [each.whole for each in intensities if each.modality in modalities and each.whole]
    if not within or not whole:
        return None, "nothing is known of the labels' intensities"
    # One case with metal must not take the contrast from all.
    low = min(float(np.percentile([each[0.5] for each in one], 5)) for one in within.values())
    high = max(float(np.percentile([each[99.5] for each in one], 95)) for one in within.values())
    margin = max(_MARGIN_HU, _MARGIN * (high - low))
    lowest = math.floor(max(low - margin, min(low, *(each[0.5] for each in whole))))
    highest = math.ceil(min(high + margin, max(high, *(each[99.5] for each in whole))))
    if lowest >= highest:
        return None, "the labels' intensities are all the same"
    why = f"CT; labels have {low:.0f} to {high:.0f}, and {margin:.0f} more for what is around them"
    return (float(lowest), float(highest)), why


def _up(voxels: float, multiple: int) -> int:
    """Rounded up to a multiple, at least one of it."""
    return max(1, math.ceil(voxels / multiple - 1e-6)) * multiple


def _rounded(mm: float) -> float:
    """Up, to three digits."""
    digits = 2 - math.floor(math.log10(mm))
    return round(math.ceil(mm * 10**digits - 1e-6) / 10**digits, max(digits, 0))


def _mm(length: float) -> str:
    return f"{length:.3g} mm"
