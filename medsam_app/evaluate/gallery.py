"""Pictures of measured cases: one slice per case with the truth and the masks of all methods.

The best and the worst case are only known at the end, so one compressed slice of every case is stored.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.geometry import RasView, padded_bounds
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import Score

#: Dataset, modality and name of a case.
CaseKey = tuple[str, str, str]
#: An axis whose voxels are longer than those of the others by this factor is the slice axis.
_COARSE = 1.5


@dataclass(frozen=True, eq=False)
class Picture:
    """One slice as displayed: row 0 at the bottom, the patient's right (or front) on the left.

    Attributes:
        image: (rows, columns) uint8 grey values.
        truth: (rows, columns) values of the measured labels, 0 elsewhere.
        masks: (rows, columns) bool by method, one per object.
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
        """Return the (rows, columns) slice of an (i, j, k) array."""
        # `take` would first copy an array whose memory layout has another axis order.
        plane = np.moveaxis(self.ras.from_file(array), self.axis, 0)[self.index]
        return np.flip(plane.T, axis=1)

    @property
    def spacing(self) -> tuple[float, float]:
        column, row = np.delete(self.ras.spacing, self.axis).tolist()
        return row, column


@dataclass
class _OpenCase:
    """The case being measured."""

    cut: _Slice
    image: NDArray
    truth: NDArray
    masks: list[tuple[str, NDArray[np.bool_]]] = field(default_factory=list)


class Gallery:
    """Collection of pictures, filled while cases are measured one after the other."""

    def __init__(self) -> None:
        self._packed: dict[CaseKey, tuple[bytes, list[str], tuple[float, float]]] = {}
        self._open: _OpenCase | None = None

    def begin(self, volume: Volume, truth: NDArray[np.integer]) -> None:
        """Choose the slice of a case that shows most of the objects.

        Args:
            truth: (i, j, k) values of the measured labels, 0 elsewhere; not 0 everywhere.
        """
        ras = volume.grid.ras
        coarse = int(np.argmax(ras.spacing))
        in_plane = np.delete(ras.spacing, coarse)
        axis = coarse if ras.spacing[coarse] > _COARSE * in_plane.max() else 2
        area = np.count_nonzero(ras.from_file(truth), axis=tuple(a for a in range(3) if a != axis))
        cut = _Slice(ras, axis, int(area.argmax()))
        self._open = _OpenCase(cut, cut.of(volume.array), cut.of(truth).copy())

    def add(self, method: str, mask: NDArray[np.bool_]) -> None:
        """Add the (i, j, k) last mask of an object of that case."""
        if self._open is not None:
            self._open.masks.append((method, self._open.cut.of(mask).copy()))

    def finish(self, key: CaseKey) -> None:
        """Store the slice of the case, cropped around the objects."""
        if self._open is None:
            return
        case, self._open = self._open, None
        covered = np.any([case.truth > 0, *(mask for _, mask in case.masks)], axis=0)
        box = padded_bounds(covered)
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

    def stored(self, key: CaseKey) -> dict[str, Any] | None:
        """Return the picture of a case as JSON values for `restore`; None if it has none."""
        if key not in self._packed:
            return None
        data, names, spacing = self._packed[key]
        return {"data": base64.b64encode(data).decode(), "names": names, "spacing": spacing}

    def restore(self, key: CaseKey, picture: Mapping[str, Any]) -> None:
        """Add a picture that `stored` returned."""
        row, column = picture["spacing"]
        self._packed[key] = base64.b64decode(picture["data"]), list(picture["names"]), (row, column)

    def __contains__(self, key: CaseKey) -> bool:
        return key in self._packed

    def __getitem__(self, key: CaseKey) -> Picture:
        """Return the picture of a case."""
        stored, names, spacing = self._packed[key]
        masks: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)
        with np.load(io.BytesIO(stored)) as arrays:
            for name, mask in zip(names, arrays["masks"], strict=True):
                masks[name].append(mask)
            return Picture(arrays["image"], arrays["truth"], dict(masks), spacing)


def case_dice(scores: Sequence[Score], method: str) -> dict[CaseKey, float]:
    """Return the mean over objects of the last Dice, by case."""
    last: dict[tuple, Score] = {}
    for score in scores:
        if score.method == method and (score.object not in last or score.click > last[score.object].click):
            last[score.object] = score
    by_case: dict[CaseKey, list[float]] = defaultdict(list)
    for score in last.values():
        by_case[score.dataset, score.modality, score.case].append(score.dice)
    return {key: float(np.mean(dice)) for key, dice in by_case.items()}


def ranked_cases(scores: Sequence[Score], method: str) -> list[tuple[str, CaseKey]]:
    """Return ('best' / 'median' / 'worst', case) by `case_dice`.

    Two cases have no median; a single case is only the best.
    """
    dice = case_dice(scores, method)
    order = sorted(dice, key=lambda key: dice[key], reverse=True)
    ranks = {"best": 0, "median": len(order) // 2, "worst": -1}
    names = {1: ["best"], 2: ["best", "worst"]}.get(len(order), list(ranks))
    return [(rank, order[ranks[rank]]) for rank in names if order]
