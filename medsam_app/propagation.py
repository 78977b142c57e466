"""A mask carried from slice to slice: what the next slice is asked, and when to stop.

A slice where somebody prompted is a key slice. From there the mask goes on in both directions: the next
slice is prompted with the box around the mask, its deepest voxel and its logits. It ends where the mask
vanishes, changes too much at once, or the model no longer believes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """Settings of the propagation.

    Attributes:
        room: how much wider than the mask the box of the next slice is on each side, as a fraction of the
            mask's size; at least two pixels.
        jump: most that the area may grow or shrink by from one slice to the next.
        overlap: least Dice between masks of neighbouring slices.
        quality: least predicted quality of a slice.
        strayed: most that the mean intensity in the mask may differ from that on the key slice, in standard
            deviations on the key slice.
        smallest: masks of fewer pixels than this have vanished.
        agrees: Dice with the mask that was there before at which a correction has been carried far enough.
    """

    room: float = 0.05
    jump: float = 2.5
    overlap: float = 0.4
    quality: float = 0.5
    strayed: float = 3.0
    smallest: int = 4
    agrees: float = 0.98


@dataclass(frozen=True, eq=False)
class SlicePrompt:
    """What a slice is asked, in its pixels (row, column).

    Attributes:
        points, labels: (N, 2) and (N,), 1 inside and 0 outside.
        box: (4,) first row, first column, last row, last column, both included, or None.
        earlier: (rows, columns) logits of a mask that the answer should resemble, or None.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    box: NDArray[np.float64] | None = None
    earlier: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class SliceMask:
    """The mask of one slice.

    Attributes:
        logits: (rows, columns) float32; above 0 is inside.
        quality: predicted Dice, in [0, 1].
    """

    logits: NDArray[np.float32]
    quality: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, columns) what is inside."""
        return self.logits > 0


#: Asks the model about a slice.
Look = Callable[[int, SlicePrompt], SliceMask]
#: (rows, columns) intensities of a slice.
Intensities = Callable[[int], NDArray[np.floating]]


def propagate(
    start: int,
    slices: Iterable[int],
    known: dict[int, SliceMask],
    *,
    look: Look,
    intensities: Intensities,
    settings: Propagation,
    before: dict[int, NDArray[np.bool_]],
) -> tuple[dict[int, SliceMask], bool]:
    """Carry the mask of a key slice over slices in one direction.

    Args:
        start: the key slice.
        slices: those to go over, nearest first.
        known: masks by slice; only that of the key slice is used.
        look: asks the model.
        intensities: of a slice.
        settings: when to stop.
        before: masks that were there before a correction, by slice.

    Returns:
        new masks by slice, and whether the object ended on the way: not so where it agreed with the masks
        of before or went through all slices.
    """
    found: dict[int, SliceMask] = {}
    previous = known[start]
    inside = intensities(start)[previous.mask]
    if not inside.size:
        return found, True
    centre, spread = float(inside.mean()), max(float(inside.std()), 1e-3)
    for number in slices:
        current = look(number, carried(previous, settings))
        if ends(previous.mask, current, settings):
            return found, True
        if abs(float(intensities(number)[current.mask].mean()) - centre) > settings.strayed * spread:
            return found, True
        old = before.get(number)
        if old is not None and dice(old, current.mask) >= settings.agrees:
            break
        found[number] = previous = current
    return found, False


def carried(previous: SliceMask, settings: Propagation) -> SlicePrompt:
    """The prompt of the next slice, from the mask of a slice."""
    rows, columns = np.nonzero(previous.mask)
    low = np.array([rows.min(), columns.min()], dtype=np.float64)
    high = np.array([rows.max(), columns.max()], dtype=np.float64)
    room = np.maximum(settings.room * (high - low + 1), 2)
    last = np.asarray(previous.mask.shape) - 1
    box = np.concatenate([np.maximum(low - room, 0), np.minimum(high + room, last)])
    return SlicePrompt(
        points=deepest(previous.mask)[None],
        labels=np.array([1]),
        box=box,
        earlier=previous.logits,
    )


def ends(previous: NDArray[np.bool_], current: SliceMask, settings: Propagation) -> bool:
    """Whether the object has ended before this slice."""
    area, old = int(current.mask.sum()), int(previous.sum())
    if area < settings.smallest or current.quality < settings.quality:
        return True
    ratio = area / old
    return not 1 / settings.jump <= ratio <= settings.jump or dice(previous, current.mask) < settings.overlap


def deepest(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(2,) the pixel of a mask that lies furthest from its outline."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape), dtype=np.float64)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Overlap of two masks; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
