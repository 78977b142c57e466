"""Episodes of simulated clicking on training windows, and their loss.

Some labels of a window are segmented with only their learned prompts. Then a simulated user segments one
label with clicks.
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

#: Number of labels per window that are segmented with only their learned prompts.
AUTOMATIC_LABELS = 2
#: Probability that an episode starts with only the learned prompt, followed by correcting clicks.
LABEL_ONLY_START_RATE = 0.15
#: Probability that the learned prompt is added if an episode starts with another prompt.
LABEL_PROMPT_RATE = 0.4
#: Probabilities of first prompts without 'outline': windows at a fixed spacing are never refined in tiles.
FIRST_PROMPTS = {kind: share / (1 - STARTS["outline"]) for kind, share in STARTS.items() if kind != "outline"}


class EpisodeRunner:
    """Episodes on training windows with a model.

    Args:
        model: model with the adapter enabled.
        adapter: adapter that is trained.
        plan: plan of the run.
        memory: bytes for cached embeddings, if the plan caches them.
    """

    def __init__(self, model: Sam3D, adapter: Adapter, plan: Plan, *, memory: float) -> None:
        self.model, self.adapter, self.plan = model, adapter, plan
        self.device = model.device
        self._embeddings = EmbeddingCache(int(memory) if plan.cached else 0)
        if plan.checkpointing and not plan.cached:
            for point in find_attachment_points(model).blocks:
                point.block.forward = _recomputed(point.block.forward)

    def run(self, windows: Sequence[TrainingWindow], rounds: int) -> tuple[Tensor, list[float]]:
        """Run one episode on each window.

        Returns:
            The mean loss, and a list of mean Dice: of the learned prompts alone (0 if the plan has none),
            then of each round.
        """
        target, valid = (
            torch.stack([getattr(window, name) for window in windows])[:, None].to(self.device)
            for name in ("target", "valid")
        )
        automatic = self.plan.automatic
        label_only = [
            automatic and (not window.target.any().item() or window.rng.random() < LABEL_ONLY_START_RATE)
            for window in windows
        ]
        prompted = [
            automatic and (only or window.rng.random() < LABEL_PROMPT_RATE)
            for only, window in zip(label_only, windows, strict=True)
        ]
        known = torch.tensor(prompted, device=self.device)
        learned = None
        if any(prompted):
            tokens = self._tokens([window.label for window in windows])
            learned = torch.where(known[:, None, None], tokens, torch.nan)
        embedding = self._embed(windows, valid)
        automatic_loss, dice = self._automatic(windows, embedding, valid) if automatic else (None, 0.0)
        user = Interaction(
            target, [window.rng for window in windows], starts=FIRST_PROMPTS, unprompted=label_only
        )
        losses, scores = [], [dice]
        for number in range(rounds):
            candidates = self._decode(embedding, replace(user.prompts(), learned=learned))
            loss, dices = loss_of(candidates, target, valid, known=known)
            losses.append(loss)
            scores.append(float(dices.mean()))
            if number + 1 < rounds:
                user.correct(candidates.best()[0])
        total = torch.stack(losses).mean()
        return (total if automatic_loss is None else total + automatic_loss), scores

    def _automatic(
        self, windows: Sequence[TrainingWindow], embedding: Embedding, valid: Tensor
    ) -> tuple[Tensor, float]:
        """Return the loss and Dice of some labels of each window, segmented with only their learned prompts.

        Several labels of the same window are used, so that their prompts learn to differ.
        """
        count = len(self.plan.labels)
        turns = min(count, AUTOMATIC_LABELS)
        chosen = np.stack([window.rng.permutation(count)[:turns] for window in windows])
        none = torch.zeros(len(windows), 0, dtype=torch.int64, device=self.device)
        known = torch.ones(len(windows), dtype=torch.bool, device=self.device)
        labels = torch.stack([window.labels for window in windows])[:, None].to(self.device)
        losses, scores = [], []
        for places in chosen.T.tolist():
            values = torch.tensor(places, device=self.device).view(-1, 1, 1, 1, 1) + 1
            coords = none[..., None].expand(-1, -1, 3).float()
            prompts = RoiPrompts(coords, none, learned=self._tokens(places))
            loss, dice = loss_of(self._decode(embedding, prompts), labels == values, valid, known=known)
            losses.append(loss)
            scores.append(float(dice.mean()))
        return torch.stack(losses).mean(), sum(scores) / turns

    def _tokens(self, places: Sequence[int]) -> Tensor:
        """Return the learned prompts (B, T, C) of labels by their index in the plan."""
        return self.adapter.prompts.tokens[list(places)]

    def _decode(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        if not self.plan.checkpointing:
            return self.model.decode(embedding, prompts)
        return _recomputed(self.model.decode)(embedding, prompts)

    def _embed(self, windows: Sequence[TrainingWindow], valid: Tensor) -> Embedding:
        """Return the embeddings of windows; if the plan caches them, they have no gradient."""
        image = torch.stack([window.image for window in windows])[:, None].to(self.device)
        if not self.plan.cached:
            return self.model.encode_image(image, valid)
        embeddings = []
        for n, window in enumerate(windows):
            embedding = self._embeddings.get(window.view)
            if embedding is None:
                with torch.no_grad():
                    embedding = self.model.encode_image(image[n : n + 1], valid[n : n + 1])
                self._embeddings.put(window.view, embedding)
            embeddings.append(embedding.tensors)
        return Embedding(*(torch.cat(parts) for parts in zip(*embeddings, strict=True)))


def _recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its activations are recomputed for the gradient instead of stored."""

    def wrapper(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

    return wrapper
