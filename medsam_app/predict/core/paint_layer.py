"""Painted voxels, applied over the mask that a model predicts from other prompts.

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
from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.patch import Patch, box_slices, enclosing_box
from medsam_app.predict.core.constraints import clicked_voxels
from medsam_app.prompts.types import AnyPrompt, MaskPrompt, Paint, Point, Scribble, UserPrompt, says_where

#: A click frees paint within this many voxels, and this many times the paint's depth where it was clicked.
FREED_VOXELS, FREED_DEPTHS = 2.0, 3.0


class Layer:
    """Painted voxels after a sequence of prompts.

    Args:
        prompts: in the order they were given.
        shape: voxels of the volume along (i, j, k).

    Attributes:
        start, stop: corners of the layer's box, `stop` excluded.
        values: (a, b, c) int8: 1 in the mask, -1 not in it, 0 where nothing is painted.
    """

    def __init__(self, prompts: Sequence[AnyPrompt], shape: Sequence[int]) -> None:
        boxes = [bits for prompt in prompts if isinstance(prompt, Paint) for bits, _ in prompt.parts]
        self.start, self.stop = enclosing_box(*((bits.start, bits.stop) for bits in boxes))
        size = np.subtract(self.stop, self.start)
        self.values = np.zeros(size, dtype=np.int8)
        self._locked = np.zeros(size, dtype=bool)
        for prompt in prompts:
            if isinstance(prompt, Paint):
                self._paint(prompt)
            elif isinstance(prompt, Point | Scribble):
                self._click(clicked_voxels(prompt, shape), 1 if prompt.positive else -1)

    def over(self, patch: Patch) -> Patch:
        """A mask with the layer over it."""
        if not self.values.size:
            return patch
        below = patch.within((self.start, self.stop))
        return patch.overlaid(Patch(self.start, np.where(self.values == 0, below, self.values == 1))).tight()

    @property
    def inside(self) -> Patch:
        """Voxels that are painted as part of the mask."""
        return Patch(self.start, self.values == 1)

    @property
    def painted(self) -> Patch:
        """Voxels that are painted as part of the mask or as not part of it."""
        return Patch(self.start, self.values != 0)

    @property
    def locked(self) -> Patch:
        """Painted voxels that newer prompts leave alone."""
        return Patch(self.start, self._locked)

    def _paint(self, paint: Paint) -> None:
        for bits, value in paint.parts:
            place = box_slices(bits.start, bits.stop, self.start)
            chosen = bits.patch().mask & ~self._locked[place]
            self.values[place][chosen] = 1 if value else -1
            if paint.locked:
                self._locked[place] |= chosen

    def _click(self, voxels: NDArray[np.intp], value: int) -> None:
        at = voxels - np.asarray(self.start)
        at = at[((at >= 0) & (at < self.values.shape)).all(axis=1)]
        against = (self.values == -value) & ~self._locked
        at = at[against[tuple(at.T)]]
        if not len(at):
            return
        parts, _ = ndimage.label(against, structure=FULL_NEIGHBOURHOOD)
        part = np.isin(parts, np.unique(parts[tuple(at.T)]))
        depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
        reach = FREED_VOXELS + FREED_DEPTHS * float(depth[tuple(at.T)].max())
        elsewhere = np.ones(part.shape, dtype=bool)
        elsewhere[tuple(at.T)] = False
        self.values[part & (ndimage.distance_transform_edt(elsewhere) <= reach)] = 0


def asked_of_model(prompts: Sequence[AnyPrompt], shape: Sequence[int]) -> tuple[UserPrompt, ...]:
    """Return the prompts for the model.

    Where nothing but paint says where the object is, the painted voxels are a mask that is given.
    """
    asked = tuple(prompt for prompt in prompts if not isinstance(prompt, Paint))
    if not any(says_where(prompt) for prompt in asked):
        layer = Layer(prompts, shape)
        given = MaskPrompt.from_patch(layer.inside, shape)
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
            if layer.locked.value_at((i, j, k)):
                layers = ((lock.what, Layer([lock], grid.shape)) for lock in locks)
                what = next(what for what, one in layers if one.locked.value_at((i, j, k)))
                raise PromptError(
                    f"Voxel ({i}, {j}, {k}) is locked for this object ({what}); unlock it to click there."
                )
