"""A lesson, played: labels asked for without a prompt, then a person who clicks; the loss of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.attachment_points import find_sites
from medsam_app.finetuning.training_windows import Lesson
from medsam_app.finetuning.plan import Plan
from medsam_app.models.sam3d import Embedding, MaskCandidates, RoiPrompts, Sam3D
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.training.loss import loss_of
from medsam_app.training.simulated_user import STARTS, Interaction

#: Labels of a window that are asked for without a prompt.
ASKED = 2
#: How often clicks follow upon what the label's learned prompt alone has found.
ALONE = 0.15
#: How often the learned prompt is there when a lesson begins in another way.
TOLD = 0.4
#: A window at fixed spacing is never drawn again in tiles: ways of beginning without that one.
WAYS = {kind: share / (1 - STARTS["outline"]) for kind, share in STARTS.items() if kind != "outline"}


class Game:
    """Plays lessons with a model.

    Args:
        model: with the adapter switched on.
        adapter: the one that is taught.
        plan: says which of its parts learn, and how memory is saved.
        memory: bytes for embeddings, where the plan wants them kept.
    """

    def __init__(self, model: Sam3D, adapter: Adapter, plan: Plan, *, memory: float) -> None:
        self.model, self.adapter, self.plan = model, adapter, plan
        self.device = model.device
        self._embeddings = EmbeddingCache(int(memory) if plan.cached else 0)
        if plan.checkpointing and not plan.cached:
            for site in find_sites(model).blocks:
                site.block.forward = _recomputed(site.block.forward)

    def play(self, lessons: Sequence[Lesson], rounds: int) -> tuple[Tensor, list[float]]:
        """Mean loss of lessons, and mean Dice without a prompt (0 where that is not taught) and by round."""
        target, valid = (
            torch.stack([getattr(lesson, name) for lesson in lessons])[:, None].to(self.device)
            for name in ("target", "valid")
        )
        automatic = self.plan.automatic
        alone = [
            automatic and (not lesson.target.any().item() or lesson.rng.random() < ALONE)
            for lesson in lessons
        ]
        told = [
            automatic and (one or lesson.rng.random() < TOLD)
            for one, lesson in zip(alone, lessons, strict=True)
        ]
        known = torch.tensor(told, device=self.device)
        learned = None
        if any(told):
            tokens = self._tokens([lesson.label for lesson in lessons])
            learned = torch.where(known[:, None, None], tokens, torch.nan)
        embedding = self._embed(lessons, valid)
        found, dice = self._ask(lessons, embedding, valid) if automatic else (None, 0.0)
        person = Interaction(target, [lesson.rng for lesson in lessons], starts=WAYS, unprompted=alone)
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

    def _ask(self, lessons: Sequence[Lesson], embedding: Embedding, valid: Tensor) -> tuple[Tensor, float]:
        """Loss and Dice of some labels of each window, asked for without a prompt.

        Several at a time: what tells one label from another is seen where both are asked for of one window.
        """
        count = len(self.plan.labels)
        turns = min(count, ASKED)
        asked = np.stack([lesson.rng.permutation(count)[:turns] for lesson in lessons])
        none = torch.zeros(len(lessons), 0, dtype=torch.int64, device=self.device)
        known = torch.ones(len(lessons), dtype=torch.bool, device=self.device)
        labels = torch.stack([lesson.labels for lesson in lessons])[:, None].to(self.device)
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
        """(B, T, C) learned prompts of labels by their places in the plan."""
        return self.adapter.prompts.tokens[list(places)]

    def _decode(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        if not self.plan.checkpointing:
            return self.model.decode(embedding, prompts)
        return _recomputed(self.model.decode)(embedding, prompts)

    def _embed(self, lessons: Sequence[Lesson], valid: Tensor) -> Embedding:
        """The embeddings of windows; those of a plan with 'cached' are kept, and have no gradient."""
        image = torch.stack([lesson.image for lesson in lessons])[:, None].to(self.device)
        if not self.plan.cached:
            return self.model.encode_image(image, valid)
        found = []
        for n, lesson in enumerate(lessons):
            kept = self._embeddings.get(lesson.view)
            if kept is None:
                with torch.no_grad():
                    kept = self.model.encode_image(image[n : n + 1], valid[n : n + 1])
                self._embeddings.put(lesson.view, kept)
            found.append(kept.tensors)
        return Embedding(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _recomputed(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose inner activations are computed again for the gradient instead of kept."""

    def again(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(*args)
        return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=False)

    return again
