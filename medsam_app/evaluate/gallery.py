"""Pictures of measured cases: of each one slice with the truth and the masks of all methods, kept small.

Which cases are the best and the worst is known at the end only, so one slice of every case is kept, packed.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.geometry import RasView, padded_bounds
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import Score

#: Dataset, modality and name of a case.
CaseKey = tuple[str, str, str]
#: An axis whose voxels are so much longer than along the others is not looked along.
_COARSE = 1.5


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice as it is shown: row 0 below, the patient's right (or front) on the left.

    Attributes:
        image: (rows, columns) uint8 grey values.
        truth: (rows, columns) values of the labels that were measured, 0 elsewhere.
        masks: (rows, columns) bool by method, one an object.
        spacing: mm from row to row and from column to column.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.integer]
    masks: dict[str, list[NDArray[np.bool_]]]
    spacing: tuple[float, float]


@dataclass
class _Slice:
    """Slice of a case for its picture."""

    ras: RasView
    axis: int
    index: int

    def of(self, array: NDArray) -> NDArray:
        """(rows, columns) the slice of an (i, j, k) array."""
        # `take` would first copy an array that does not lie in memory in this order.
        chosen = np.moveaxis(self.ras.from_file(array), self.axis, 0)[self.index]
        return np.flip(chosen.T, axis=1)

    @property
    def spacing(self) -> tuple[float, float]:
        column, row = np.delete(self.ras.spacing, self.axis).tolist()
        return row, column


@dataclass
class _Open:
    """The case that is being measured."""

    cut: _Slice
    image: NDArray
    truth: NDArray
    masks: list[tuple[str, NDArray[np.bool_]]] = field(default_factory=list)


class Gallery:
    """Collects pictures while cases are measured, one case after the other."""

    def __init__(self) -> None:
        self._packed: dict[CaseKey, tuple[bytes, list[str], tuple[float, float]]] = {}
        self._open: _Open | None = None

    def begin(self, volume: Volume, truth: NDArray[np.integer]) -> None:
        """Choose the slice of a case that holds most of the objects.

        Args:
            truth: (i, j, k) values of the labels that are measured, 0 elsewhere, somewhere not 0.
        """
        ras = volume.grid.ras
        coarse = int(np.argmax(ras.spacing))
        others = np.delete(ras.spacing, coarse)
        axis = coarse if ras.spacing[coarse] > _COARSE * others.max() else 2
        area = np.count_nonzero(ras.from_file(truth), axis=tuple(a for a in range(3) if a != axis))
        cut = _Slice(ras, axis, int(area.argmax()))
        self._open = _Open(cut, cut.of(volume.array), cut.of(truth).copy())

    def add(self, method: str, mask: NDArray[np.bool_]) -> None:
        """The (i, j, k) last mask of an object of that case."""
        if self._open is not None:
            self._open.masks.append((method, self._open.cut.of(mask).copy()))

    def finish(self, key: CaseKey) -> None:
        """Keep the slice of the case, cropped around the objects."""
        if self._open is None:
            return
        case, self._open = self._open, None
        drawn = np.any([case.truth > 0, *(mask for _, mask in case.masks)], axis=0)
        box = padded_bounds(drawn)
        image = case.image[box].astype(np.float32)
        black, white = np.percentile(image, [1, 99])
        grey = np.clip((image - black) / max(white - black, 1e-6), 0, 1)
        stored = io.BytesIO()
        np.savez_compressed(
            stored,
            image=np.round(255 * grey).astype(np.uint8),
            truth=case.truth[box],
            masks=np.array([mask[box] for _, mask in case.masks], dtype=bool),
        )
        self._packed[key] = stored.getvalue(), [name for name, _ in case.masks], case.cut.spacing

    def __contains__(self, key: CaseKey) -> bool:
        return key in self._packed

    def __getitem__(self, key: CaseKey) -> Picture:
        """The picture of a case."""
        stored, names, spacing = self._packed[key]
        masks: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
        with np.load(io.BytesIO(stored)) as arrays:
            for name, mask in zip(names, arrays["masks"], strict=True):
                masks[name].append(mask)
            return Picture(arrays["image"], arrays["truth"], dict(masks), spacing)


def case_dice(scores: Sequence[Score], method: str) -> dict[CaseKey, float]:
    """Mean of the last Dice of the objects of each case."""
    last: dict[tuple, Score] = {}
    for score in scores:
        if score.method == method and (score.object not in last or score.click > last[score.object].click):
            last[score.object] = score
    by_case: dict[CaseKey, list[float]] = defaultdict(list)
    for score in last.values():
        by_case[score.dataset, score.modality, score.case].append(score.dice)
    return {key: float(np.mean(dice)) for key, dice in by_case.items()}


def ranked_cases(scores: Sequence[Score], method: str) -> list[tuple[str, CaseKey]]:
    """('best' / 'median' / 'worst', case) by `case_dice`; of two cases no median, of one no worst."""
    dice = case_dice(scores, method)
    order = sorted(dice, key=lambda key: dice[key], reverse=True)
    ranks = {"best": 0, "median": len(order) // 2, "worst": -1}
    wanted = {1: ["best"], 2: ["best", "worst"]}.get(len(order), list(ranks))
    return [(rank, order[ranks[rank]]) for rank in wanted if order]
