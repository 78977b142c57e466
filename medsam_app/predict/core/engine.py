"""Engine protocol: prompts in, state after them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.grid.roi import Roi
from medsam_app.io.volume import Volume
from medsam_app.predict.core import constraints
from medsam_app.predict.core.prediction import PromptState
from medsam_app.progress import Progress
from medsam_app.prompts.types import UserPrompt, says_where

Prompts = tuple[UserPrompt, ...]


class Engine(Protocol):
    """One model on one volume.

    Its results depend only on the model, the volume, its settings and the arguments, not on earlier calls.

    Attributes:
        volume: what is segmented.
        encoded: windows or slices encoded so far; what the cache held is not counted.
    """

    volume: Volume
    encoded: int

    def step(
        self,
        before: PromptState | None,
        prompts: Prompts,
        progress: Progress | None,
        label: int | None = None,
    ) -> PromptState:
        """The state after the last prompt.

        Args:
            before: the state after the prompts before it; None when these did not say where the object is.
            prompts: all prompts so far, the newest last.
            progress: called with a sentence and a fraction done.
            label: what is looked for, of the labels that the adapter in use has learned; None for anything.
        """

    def refined(
        self, state: PromptState, prompts: Prompts, progress: Progress | None, label: int | None = None
    ) -> tuple[Patch, tuple[int, ...]]:
        """Return a state's mask, with a finer outline if there is one, and indices of unmet prompts."""


def settled_state(
    before: PromptState | None,
    prompts: Prompts,
    grid: Grid,
    roi: Roi,
    logits: torch.Tensor,
    patch: Patch,
    score: float,
    *,
    detailed: bool,
) -> PromptState:
    """Return the state of a mask on the volume's grid after enforcing clicks and boxes."""
    patch, unmet = constraints.settle(patch, prompts, grid.shape)
    old = Patch.empty() if before is None else before.patch
    return PromptState(roi, logits, detailed, patch, score, unmet, old.difference(patch))


def first_step(prompts: Sequence[UserPrompt]) -> int:
    """Return the number of prompts up to the first that shows where the object is.

    Raises:
        PromptError: none of them does.
    """
    for number, prompt in enumerate(prompts, start=1):
        if says_where(prompt):
            return number
    if not prompts:
        raise PromptError("There is no prompt; give a positive click, a box or a mask to start from.")
    raise PromptError(
        f"All {len(prompts)} clicks are negative, which says only where the object is not; "
        "start with a positive click or a box."
    )
