"""Episodes of simulated clicking on training windows, and their loss.

Some labels of a window are segmented by their learned prompts alone, then one by a simulated user who clicks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.attachment_points import find_attachment_points
from medsam_app.finetuning.plan import Plan
from medsam_app.finetuning.training_windows import TrainingWindow
from medsam_app.models.sam3d import Embedding, MaskCandidates, RoiPrompts, Sam3D
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.training.loss import loss_of
from medsam_app.training.simulated_user import STARTS, Interaction

#: Labels of a window that are segmented by their learned prompts alone.
ASKED = 2
#: How often an episode starts from the learned prompt alone, which clicks then correct.
LABEL_ONLY_START_RATE = 0.15
#: How often the learned prompt is given too where an episode starts in another way.
LABEL_PROMPT_RATE = 0.4
#: A window at fixed spacing is never drawn again in tiles: ways of beginning without that one.
WAYS = {kind: share / (1 - STARTS["outline"]) for kind, share in STARTS.items() if kind != "outline"}


class EpisodeRunner:
    """Runs episodes on training windows with a model.

    Args:
        model: with the adapter switched on.
        adapter: the one that is trained.
        plan: says which of its parts learn, and how memory is saved.
        memory: bytes for cached embeddings, if the plan caches them.
    """

    def __init__(self, model: Sam3D, adapter: Adapter, plan: Plan, *, memory: float) -> None:
        self.model, self.adapter, self.plan = model, adapter, plan
        self.device = model.device
        self._embeddings = EmbeddingCache(int(memory) if plan.cached else 0)
        if plan.checkpointing and not plan.cached:
            for site in find_attachment_points(model).blocks:
                site.block.forward = _recomputed(site.block.forward)

    def run(self, windows: Sequence[TrainingWindow], rounds: int) -> tuple[Tensor, list[float]]:
        """Run one episode on each window.

        Returns:
            Mean loss; and mean Dice of the learned prompts alone, 0 without any, followed by that of each
            round.
        """
        target, valid = (
            torch.stack([getattr(window, name) for window in windows])[:, None].to(self.device)
            for name in ("target", "valid")
        )
        automatic = self.plan.automatic
        alone = [
            automatic and (not window.target.any().item() or window.rng.random() < LABEL_ONLY_START_RATE)
            for window in windows
        ]
        prompted = [
            automatic and (one or window.rng.random() < LABEL_PROMPT_RATE)
            for one, window in zip(alone, windows, strict=True)
        ]
        known = torch.tensor(prompted, device=self.device)
        learned = None
        if any(prompted):
            tokens = self._tokens([window.label for window in windows])
            learned = torch.where(known[:, None, None], tokens, torch.nan)
        embedding = self._embed(windows, valid)
        found, dice = self._ask(windows, embedding, valid) if automatic else (None, 0.0)
        person = Interaction(target, [window.rng for window in windows], starts=WAYS, unprompted=alone)
        losses, scores = [], [dice]
        for number in range(rounds):
            candidates = self._decode(embedding, replace(person.prompts(), learned=learned))
            loss, dices = loss_of(candidates, target, valid, known=known)
            losses.append(loss)
            scores.append(float(dices.mean()))
            if number + 1 < rounds:
                person.correct(candidates.best()[0])
        total = torch.stack(losses).mean()
        return (total if found is None else total + found), scores

    def _ask(
        self, windows: Sequence[TrainingWindow], embedding: Embedding, valid: Tensor
    ) -> tuple[Tensor, float]:
        """Return the loss and Dice of some labels of each window, segmented by their learned prompts alone.

        Several labels of one window, since their difference is what tells the prompts apart.
        """
        count = len(self.plan.labels)
        turns = min(count, ASKED)
        asked = np.stack([window.rng.permutation(count)[:turns] for window in windows])
        none = torch.zeros(len(windows), 0, dtype=torch.int64, device=self.device)
        known = torch.ones(len(windows), dtype=torch.bool, device=self.device)
        labels = torch.stack([window.labels for window in windows])[:, None].to(self.device)
        losses, scores = [], []
        for places in asked.T.tolist():
            wanted = torch.tensor(places, device=self.device).view(-1, 1, 1, 1, 1) + 1
            coords = none[..., None].expand(-1, -1, 3).float()
            prompts = RoiPrompts(coords, none, learned=self._tokens(places))
            loss, dice = loss_of(self._decode(embedding, prompts), labels == wanted, valid, known=known)
            losses.append(loss)
            scores.append(float(dice.mean()))
        return torch.stack(losses).mean(), sum(scores) / turns

    def _tokens(self, places: Sequence[int]) -> Tensor:
        """Return the (B, T, C) learned prompts of labels, given their places in the plan."""
        return self.adapter.prompts.tokens[list(places)]

    def _decode(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        if not self.plan.checkpointing:
            return self.model.decode(embedding, prompts)
        return _recomputed(self.model.decode)(embedding, prompts)

    def _embed(self, windows: Sequence[TrainingWindow], valid: Tensor) -> Embedding:
        """Return the embeddings of windows; with `cached` they are kept and have no gradient."""
        image = torch.stack([window.image for window in windows])[:, None].to(self.device)
        if not self.plan.cached:
            return self.model.encode_image(image, valid)
        found = []
        for n, window in enumerate(windows):
            kept = self._embeddings.get(window.view)
            if kept is None:
                with torch.no_grad():
                    kept = self.model.encode_image(image[n : n + 1], valid[n : n + 1])
                self._embeddings.put(window.view, kept)
            found.append(kept.tensors)
        return Embedding(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _recomputed(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a call so that its activations are recomputed for the gradient instead of stored."""

    def again(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(*args)
        return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=False)

    return again
