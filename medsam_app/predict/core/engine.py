"""Protocol of the engines that turn prompts into states, and helpers they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from medsam_app.prompts.types import MOST_ALTERNATIVES, Choice, UserPrompt, locates_object

Prompts = tuple[UserPrompt, ...]
#: A mask whose Dice with another one is at least this is no alternative to it.
SAME = 0.8


class Engine(Protocol):
    """One model on one volume.

    Results depend only on the model, the volume, the settings and the arguments, not on earlier calls.

    Attributes:
        volume: the volume to segment.
        encoded: windows or slices encoded so far, not counting those from the cache.
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
        """Return the state after the last prompt.

        Args:
            before: the state after the previous prompts; None if these do not locate the object.
            prompts: all prompts so far, the newest last.
            progress: called with a sentence and the fraction done.
            label: value of a label that the adapter in use has learned; None for the object that the prompts
                mark.
        """

    def refined(
        self, state: PromptState, prompts: Prompts, progress: Progress | None, label: int | None = None
    ) -> tuple[Patch, tuple[int, ...]]:
        """Return a state's mask, with a finer outline where possible, and the indices of unmet prompts."""

    def alternatives(
        self, state: PromptState, prompts: Prompts, label: int | None = None
    ) -> Sequence[PromptState]:
        """Return other states for the first prompts, the best first; see `step` for the arguments."""


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
    """Return the state of a mask on the volume's grid after clicks and boxes are enforced."""
    patch, unmet = constraints.settle(patch, prompts, grid.shape)
    old = Patch.empty() if before is None else before.patch
    agreement = None if before is None else _overlap(old, patch)
    return PromptState(roi, logits, detailed, patch, score, unmet, old.difference(patch), agreement=agreement)


def distinct(shown: PromptState, others: Sequence[PromptState]) -> tuple[list[PromptState], int]:
    """Return a state and those of others whose masks differ, by size, and the index of that state.

    Args:
        shown: the state that is always among them.
        others: other states, the best first; those that resemble an earlier one are left out.
    """
    kept = [shown]
    for state in others:
        if len(kept) == MOST_ALTERNATIVES:
            break
        if state.patch.voxels and all(_overlap(state.patch, other.patch) < SAME for other in kept):
            kept.append(replace(state, changed=shown.patch.difference(state.patch)))
    kept.sort(key=lambda state: state.patch.voxels)
    return kept, kept.index(shown)


def _overlap(a: Patch, b: Patch) -> float:
    """Return the Dice of two masks."""
    return 2 * (a.voxels - a.without(b).voxels) / max(1, a.voxels + b.voxels)


def first_step(prompts: Sequence[UserPrompt | Choice]) -> int:
    """Return the number of prompts up to and including the first that locates the object.

    Raises:
        PromptError: no prompt locates the object.
    """
    for number, prompt in enumerate(prompts, start=1):
        if locates_object(prompt):
            return number
    if not prompts:
        raise PromptError("There is no prompt; give a positive click, a box or a mask to start from.")
    raise PromptError(
        f"All {len(prompts)} clicks are negative, which says only where the object is not; "
        "start with a positive click or a box."
    )
