"""What a predictor asks of the part that knows its kind of model, and what all of those end with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app import compliance
from medsam_app.geometry import Grid
from medsam_app.prediction import State, difference_box
from medsam_app.prompts import Box, MaskPrompt, Point
from medsam_app.roi import Index, Roi

AnyPrompt = Point | Box | MaskPrompt
Progress = Callable[[str, float], None]


class Engine(Protocol):
    """Steps of one volume with one model. A step is a pure function of its arguments.

    Attributes:
        encoded: how often the image encoder has run.
    """

    encoded: int

    def step(
        self, before: State | None, prompts: tuple[AnyPrompt, ...], progress: Progress | None = None
    ) -> State:
        """The state after the last of the prompts, from the state before it."""
        ...

    def refined(
        self, state: State, prompts: tuple[AnyPrompt, ...], progress: Progress | None
    ) -> tuple[Index, NDArray[np.bool_], tuple[int, ...]]:
        """Start, patch and unmet prompts of a state's mask with its outline drawn finely."""
        ...


def settled_state(
    before: State | None,
    prompts: tuple[AnyPrompt, ...],
    grid: Grid,
    roi: Roi,
    logits: torch.Tensor,
    start: Index,
    patch: NDArray[np.bool_],
    score: float,
    *,
    detailed: bool,
) -> State:
    """A state whose mask honours its prompts voxel by voxel, compared with the one before."""
    start, patch, unmet = compliance.settle(start, patch, prompts, grid.shape)
    patch.setflags(write=False)
    old = (start, patch[:0]) if before is None else (before.start, before.patch)
    return State(roi, logits, detailed, start, patch, score, unmet, difference_box(*old, start, patch))
