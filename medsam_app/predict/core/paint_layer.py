"""What was painted by hand, laid over the mask that a model makes of the other prompts.

Prompts are gone through in order and the newest word wins: paint sets voxels, and a click that says otherwise
frees the connected painted part that it is in, a few times as far as the part is deep there: all of a blob,
but only the near piece of a thin shell or a long stroke. Locked voxels stay as they are whatever follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import Index, tight
from medsam_app.predict.core.constraints import clicked_voxels
from medsam_app.predict.core.prediction import box_slices, on_box, union_box
from medsam_app.prompts.types import AnyPrompt, Bits, MaskPrompt, Paint, Point, Scribble, Told, says_where

#: A click frees paint within so many voxels, and so many times the paint's depth where it was clicked.
FREED_VOXELS, FREED_DEPTHS = 2.0, 3.0
_FULL = np.ones((3, 3, 3), dtype=bool)


class Layer:
    """What is painted after a sequence of prompts.

    Args:
        prompts: in the order they were given.
        shape: voxels of the volume along (i, j, k).

    Attributes:
        start: (i, j, k) first voxel of the layer.
        values: (a, b, c) int8: 1 in the mask, -1 not in it, 0 where nothing is painted.
        locked: (a, b, c) which of them hold whatever is said.
    """

    def __init__(self, prompts: Sequence[AnyPrompt], shape: Sequence[int]) -> None:
        boxes = [bits for prompt in prompts if isinstance(prompt, Paint) for bits, _ in prompt.parts]
        low = np.min([bits.start for bits in boxes], axis=0) if boxes else np.zeros(3, dtype=int)
        high = np.max([bits.stop for bits in boxes], axis=0) if boxes else low
        i, j, k = map(int, low)
        self.start: Index = (i, j, k)
        self.values = np.zeros(high - low, dtype=np.int8)
        self.locked = np.zeros(high - low, dtype=bool)
        for prompt in prompts:
            if isinstance(prompt, Paint):
                self._paint(prompt)
            elif isinstance(prompt, Point | Scribble):
                self._click(clicked_voxels(prompt, shape), 1 if prompt.positive else -1)

    def over(self, start: Index, patch: NDArray[np.bool_]) -> tuple[Index, NDArray[np.bool_]]:
        """Start and patch of a mask with the layer over it."""
        if not self.values.size:
            return start, patch
        box = union_box((start, patch), (self.start, self.values))
        mask = np.array(on_box(start, patch, box))
        inner = mask[self._within(box[0])]
        inner[self.values == 1] = True
        inner[self.values == -1] = False
        return tight(box[0], mask)

    def is_locked(self, voxel: Index) -> bool:
        """Whether a voxel (i, j, k) is locked."""
        at = np.subtract(voxel, self.start)
        return bool(((at >= 0) & (at < self.locked.shape)).all() and self.locked[tuple(at)])

    def settled(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """(i, j, k) painted voxels of the whole volume."""
        whole = np.zeros(tuple(shape), dtype=bool)
        whole[box_slices(self.start, self.values)] = self.values != 0
        return whole

    def _within(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Where the layer lies in an array that begins at a voxel."""
        sides = zip(self.start, origin, self.values.shape, strict=True)
        return tuple(slice(s - o, s - o + n) for s, o, n in sides)

    def _part(self, bits: Bits) -> tuple[slice, ...]:
        sides = zip(bits.start, bits.stop, self.start, strict=True)
        return tuple(slice(a - s, b - s) for a, b, s in sides)

    def _paint(self, paint: Paint) -> None:
        for bits, value in paint.parts:
            place, chosen = self._part(bits), bits.patch()
            chosen &= ~self.locked[place]
            self.values[place][chosen] = 1 if value else -1
            if paint.locked:
                self.locked[place] |= chosen

    def _click(self, voxels: NDArray[np.intp], value: int) -> None:
        at = voxels - np.asarray(self.start)
        at = at[((at >= 0) & (at < self.values.shape)).all(axis=1)]
        against = (self.values == -value) & ~self.locked
        at = at[against[tuple(at.T)]]
        if not len(at):
            return
        parts, _ = ndimage.label(against, structure=_FULL)
        part = np.isin(parts, np.unique(parts[tuple(at.T)]))
        depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
        reach = FREED_VOXELS + FREED_DEPTHS * float(depth[tuple(at.T)].max())
        elsewhere = np.ones(part.shape, dtype=bool)
        elsewhere[tuple(at.T)] = False
        self.values[part & (ndimage.distance_transform_edt(elsewhere) <= reach)] = 0


def asked_of_model(prompts: Sequence[AnyPrompt], shape: Sequence[int]) -> tuple[Told, ...]:
    """The prompts that a model is asked about.

    Where nothing but paint says where the object is, the painted voxels are a mask that is given.
    """
    asked = tuple(prompt for prompt in prompts if not isinstance(prompt, Paint))
    if not any(says_where(prompt) for prompt in asked):
        layer = Layer(prompts, shape)
        given = MaskPrompt.from_patch(layer.start, layer.values == 1, shape)
        return asked if given is None else (given,)
    return asked


def refuse_locked(prompts: Sequence[AnyPrompt], newest: AnyPrompt, grid: Grid) -> None:
    """Raise `PromptError` for a click or a scribble on a locked voxel."""
    if not isinstance(newest, Point | Scribble):
        return
    locks = [prompt for prompt in prompts if isinstance(prompt, Paint) and prompt.locked]
    if locks:
        layer = Layer(locks, grid.shape)
        for i, j, k in clicked_voxels(newest, grid.shape).tolist():
            if layer.is_locked((i, j, k)):
                what = next(lock.what for lock in locks if Layer([lock], grid.shape).is_locked((i, j, k)))
                raise PromptError(
                    f"Voxel ({i}, {j}, {k}) is locked for this object ({what}); unlock it to click there."
                )
