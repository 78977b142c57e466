"""Painted voxels, applied over the mask that a model predicts from other prompts.

Prompts are processed in order, and the newest wins. Paint sets voxels. A click that contradicts the paint
clears the connected painted part around it, within a few times the depth of that part at the click: all of a
blob, but only the nearby piece of a thin shell or a long stroke. Later prompts do not change locked voxels.
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
from medsam_app.prompts.types import (
    AnyPrompt,
    Choice,
    MaskPrompt,
    Paint,
    Point,
    Scribble,
    UserPrompt,
    locates_object,
)

#: Reach of a click that clears paint: this many voxels, plus this many times the paint's depth at the click.
CLEARED_VOXELS, CLEARED_DEPTHS = 2.0, 3.0


class Layer:
    """Painted voxels after a sequence of prompts.

    Args:
        prompts: in the order they were given.
        shape: voxels of the volume along (i, j, k).

    Attributes:
        start, stop: corners of the layer's box, `stop` excluded.
        values: (a, b, c) int8: 1 painted as inside, -1 painted as outside, 0 not painted.
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
        """Return a mask with the layer applied over it."""
        if not self.values.size:
            return patch
        below = patch.within((self.start, self.stop))
        return patch.overlaid(Patch(self.start, np.where(self.values == 0, below, self.values == 1))).tight()

    @property
    def inside(self) -> Patch:
        """Voxels painted as inside the mask."""
        return Patch(self.start, self.values == 1)

    @property
    def painted(self) -> Patch:
        """Voxels painted as inside or as outside the mask."""
        return Patch(self.start, self.values != 0)

    @property
    def locked(self) -> Patch:
        """Painted voxels that later prompts do not change."""
        return Patch(self.start, self._locked)

    def _paint(self, paint: Paint) -> None:
        for bits, value in paint.parts:
            region = box_slices(bits.start, bits.stop, self.start)
            voxels = bits.patch().mask & ~self._locked[region]
            self.values[region][voxels] = 1 if value else -1
            if paint.locked:
                self._locked[region] |= voxels

    def _click(self, voxels: NDArray[np.intp], value: int) -> None:
        clicked = voxels - np.asarray(self.start)
        clicked = clicked[((clicked >= 0) & (clicked < self.values.shape)).all(axis=1)]
        contradicting = (self.values == -value) & ~self._locked
        clicked = clicked[contradicting[tuple(clicked.T)]]
        if not len(clicked):
            return
        parts, _ = ndimage.label(contradicting, structure=FULL_NEIGHBOURHOOD)
        part = np.isin(parts, np.unique(parts[tuple(clicked.T)]))
        depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1]
        reach = CLEARED_VOXELS + CLEARED_DEPTHS * float(depth[tuple(clicked.T)].max())
        unclicked = np.ones(part.shape, dtype=bool)
        unclicked[tuple(clicked.T)] = False
        self.values[part & (ndimage.distance_transform_edt(unclicked) <= reach)] = 0


def prompts_for_model(prompts: Sequence[AnyPrompt], shape: Sequence[int]) -> tuple[UserPrompt | Choice, ...]:
    """Return the prompts for the model: all except paint.

    If only paint locates the object, the painted voxels become a mask prompt.
    """
    model_prompts = tuple(prompt for prompt in prompts if not isinstance(prompt, Paint))
    if not any(locates_object(prompt) for prompt in model_prompts):
        layer = Layer(prompts, shape)
        painted = MaskPrompt.from_patch(layer.inside, shape)
        return model_prompts if painted is None else (painted,)
    return model_prompts


def refuse_locked(prompts: Sequence[AnyPrompt], newest: AnyPrompt, grid: Grid) -> None:
    """Raise `PromptError` if the newest prompt is a click or a scribble on a locked voxel."""
    if not isinstance(newest, Point | Scribble):
        return
    locks = [prompt for prompt in prompts if isinstance(prompt, Paint) and prompt.locked]
    if locks:
        layer = Layer(locks, grid.shape)
        for i, j, k in clicked_voxels(newest, grid.shape).tolist():
            if layer.locked.value_at((i, j, k)):
                layers = ((lock.what, Layer([lock], grid.shape)) for lock in locks)
                what = next(what for what, locked_layer in layers if locked_layer.locked.value_at((i, j, k)))
                raise PromptError(
                    f"Voxel ({i}, {j}, {k}) is locked for this object ({what}); unlock it to click there."
                )
