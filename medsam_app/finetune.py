"""Teaching an adapter by simulated interaction: one process of a run, step by step.

A lesson is a window and a label. It begins as people begin (a click, a box, a rough mask, ...) or with
nothing but the learned prompt of the label; then come clicks where the mask is most wrong, the previous
probability fed back. All rounds carry a loss. What is taught is the adapter alone; the base stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.header import AdapterCard
from medsam_app.adapters.sites import find_sites
from medsam_app.cache import EmbeddingCache
from medsam_app.cases import Case
from medsam_app.errors import AdapterError, SettingsError
from medsam_app.exam import Exam
from medsam_app.interaction import STARTS, Interaction
from medsam_app.models.load import fast_dtype, load_model
from medsam_app.models.sam3d import Embedding, MaskCandidates, RoiPrompts, Sam3D
from medsam_app.plan import Plan
from medsam_app.teaching_data import Lesson, Lessons
from medsam_app.training_loss import loss_of
from medsam_app.training_state import (
    average_gradients,
    damaged,
    follow,
    is_saved,
    moments,
    rate_at,
    read_state,
    take_moments,
    update,
    write_state,
)

#: Tensors of a saved run.
FILES = ("adapter", "average", "optimizer")
#: In the folder of a run: the adapter that measured best.
BEST = "best.safetensors"
#: Layers of the decoder that work on every voxel: they cost a third of the time and are general enough.
FULL_SIZE = ("full", "mix_full")
#: Learning rate of learned prompts, as a multiple of that of everything else.
FASTER = 5.0
#: How often a lesson begins with the label's learned prompt alone.
ALONE = 0.3
#: How often the learned prompt is there when a lesson begins in another way.
TOLD = 0.4
#: A window at fixed spacing is never drawn again in tiles: ways of beginning without that one.
WAYS = {kind: share / (1 - STARTS["outline"]) for kind, share in STARTS.items() if kind != "outline"}


def fresh_adapter(model: Sam3D, plan: Plan) -> Adapter:
    """An adapter as planned, switched on; the same tensors for the same seed.

    Raises:
        AdapterError: the model cannot have it.
    """
    also = set() if plan.cached else set(model.taught)
    if "decoder" in model.taught:  # it is fresh
        also.add("decoder")
    elif plan.decoder:
        own = model.decoder.named_children(), model.decoder.named_parameters(recurse=False)
        also |= {f"decoder.{name}" for part in own for name, _ in part if name not in FULL_SIZE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        adapter = Adapter.create(
            plan.adapter,
            model,
            also=sorted(also),
            labels=list(plan.labels) if plan.automatic else [],
            **plan.settings,
        )
    adapter.enable()
    return adapter


class Teacher:
    """One process of a run.

    Args:
        plan: what is done.
        cases: taught on.
        held_out: measured on; there may be none.
        out: folder of the run; a state saved there is taken up.
        device: of this process.
        weights: of the base, instead of the published ones.
        memory: bytes for cached cases, and as many for cached embeddings where the plan wants them.

    Raises:
        MedsamError: a case, the base or a saved state cannot be read, or they do not go together.
    """

    def __init__(
        self,
        plan: Plan,
        cases: Sequence[Case],
        held_out: Sequence[Case],
        out: Path,
        device: torch.device,
        *,
        weights: Path | None = None,
        memory: float = 4e9,
    ) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if plan.batch % self.world:
            raise SettingsError(
                f"{self.world} processes cannot share {plan.batch} windows an update evenly; make 'batch' a "
                f"multiple of {self.world}."
            )
        self.model = cast(Sam3D, load_model(plan.base, device=device, weights=weights))
        self.model.amp_dtype = fast_dtype(device)
        self.adapter = fresh_adapter(self.model, plan)
        if plan.checkpointing and not plan.cached:
            for site in find_sites(self.model).blocks:
                site.block.forward = _recomputed(site.block.forward)
        self.parameters = [p for p in self.adapter.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()
        self.average = {key: value.clone() for key, value in self.adapter.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.best, self.stale = -1.0, 0
        if is_saved(out):
            self._resume()
        self.lessons = Lessons(cases, plan, memory=memory)
        self.exam = Exam(held_out, plan) if held_out and self.rank == 0 else None
        self._embeddings = EmbeddingCache(int(memory) if plan.cached else 0)

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW; learned prompts begin with nothing and go faster."""
        prompts = list(self.adapter.prompts.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters if all(p is not other for other in prompts)]},
            {"params": prompts, "faster": FASTER, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.plan.learning_rate,
            weight_decay=self.plan.weight_decay,
            betas=(0.9, 0.98),
        )

    @property
    def recipe(self) -> Plan:
        """How long the run is."""
        return self.plan

    def done(self) -> float:
        """Which part of the run is behind, from 0 to 1."""
        return self.plan.done(self.step, self.seconds)

    def settled(self) -> bool:
        """Whether so many measurements brought nothing that more are not worth the time."""
        return 0 < self.plan.patience <= self.stale

    def train_step(self) -> dict[str, Any]:
        """One update; its line in the log. The same lessons, however many processes share them."""
        plan = self.plan
        rng = np.random.default_rng((plan.seed, 4, self.step))
        rounds = int(rng.integers(plan.rounds[0], plan.rounds[1] + 1))
        first = self.step * plan.batch
        own = range(first + self.rank, first + plan.batch, self.world)
        self.adapter.zero_grad(set_to_none=True)
        size = plan.micro_batch or len(own)
        told = torch.zeros(1 + rounds, dtype=torch.float64)
        for start in range(0, len(own), size):
            lessons = [self.lessons.draw(number) for number in own[start : start + size]]
            loss, dice = self.play(lessons, rounds)
            part = len(lessons) / len(own)
            (loss * part).backward()
            told += part * torch.tensor([float(loss.detach()), *dice], dtype=torch.float64)
        average_gradients(self.parameters, self.world)
        if self.world > 1:
            told = told.to(self.device)
            dist.all_reduce(told)
            told /= self.world
        rate = rate_at(plan.learning_rate, self.done(), self.step, plan.warmup_steps)
        update([self.optimizer], self.parameters, rate)
        follow(self.average, self.adapter.state_dict(), plan.ema, self.step)
        self.step += 1
        loss, *scores = told.tolist()
        return {"step": self.step, "loss": loss, "dice": scores, "lr": rate}

    def play(self, lessons: Sequence[Lesson], rounds: int) -> tuple[Tensor, list[float]]:
        """Mean loss of lessons that are played so many rounds, and mean Dice after each."""
        target = torch.stack([lesson.target for lesson in lessons])[:, None].to(self.device)
        valid = torch.stack([lesson.valid for lesson in lessons])[:, None].to(self.device)
        automatic = self.plan.automatic
        alone = [
            automatic and (not lesson.target.any().item() or lesson.rng.random() < ALONE)
            for lesson in lessons
        ]
        told = [
            automatic and (one or lesson.rng.random() < TOLD)
            for one, lesson in zip(alone, lessons, strict=True)
        ]
        learned = None
        if any(told):
            tokens = self.adapter.prompts.tokens[[lesson.label for lesson in lessons]]
            there = torch.tensor(told, device=self.device)[:, None, None]
            learned = torch.where(there, tokens, torch.nan)
        person = Interaction(target, [lesson.rng for lesson in lessons], starts=WAYS, unprompted=alone)
        embedding = self._embed(lessons, valid)
        losses, scores = [], []
        for number in range(rounds):
            candidates = self._decode(embedding, replace(person.prompts(), learned=learned))
            loss, dice = loss_of(candidates, target, valid)
            losses.append(loss)
            scores.append(float(dice.mean()))
            if number + 1 < rounds:
                person.correct(candidates.best()[0])
        return torch.stack(losses).mean(), scores

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

    def measure(self, stopped: Callable[[], bool]) -> dict[str, list[float]] | None:
        """Mean Dice on the held-out cases with the averaged adapter, which is kept where it is the best."""
        if self.exam is None:
            return None
        with self._averaged():
            found = self.exam.measure(self.model, self.adapter, stopped=stopped)
            if found is None:
                return None
            score = self.exam.score(found)
            self.stale += 1
            if score > self.best:
                self.best, self.stale = score, 0
                self.adapter.save(self.out / BEST, self.card(found))
        return found

    def keep_last(self, path: Path) -> None:
        """Save the averaged adapter as it is now."""
        with self._averaged():
            self.adapter.save(path, self.card({}))

    def card(self, measured: Mapping[str, Sequence[float]]) -> AdapterCard:
        """What the adapter's file says of itself."""
        plan, clip = self.plan, self.plan.clip
        method: dict[str, Any] = {"method": "window"}
        if clip is not None:
            method = {"method": "clip", "low": clip[0], "high": clip[1]}
        training = {"step": self.step, "minutes": round(self.seconds / 60, 1), "cases": self.lessons.count}
        return AdapterCard(
            spacing=(plan.spacing,) * 3,
            window=plan.window,
            intensity=method,
            labels=plan.labels,
            training=training | {"dice": {k: [round(x, 4) for x in v] for k, v in measured.items()}},
        )

    def save(self) -> None:
        """Write the run's state.

        Raises:
            SaveError: it could not be written.
        """
        if self.rank == 0:
            tensors = (self.adapter.state_dict(), self.average, moments([self.optimizer], self.parameters))
            state = {"step": self.step, "seconds": self.seconds, "best": self.best, "stale": self.stale}
            write_state(self.out, dict(zip(FILES, tensors, strict=True)), state)

    def _resume(self) -> None:
        """Take up the saved state, so that the next step is what it would have been."""
        state, (adapter, average, optimizer) = read_state(self.out, FILES)
        try:
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.best, self.stale = float(state["best"]), int(state["stale"])
            self.adapter.load_state_dict(adapter)
            for key, value in average.items():
                self.average[key].copy_(value)
            take_moments([self.optimizer], self.parameters, optimizer)
        except (KeyError, TypeError, ValueError, RuntimeError, AdapterError):
            raise damaged(self.out) from None

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The adapter with its averaged tensors, for measuring and for keeping."""
        own = {key: value.clone() for key, value in self.adapter.state_dict().items()}
        self.adapter.load_state_dict(self.average)
        try:
            yield
        finally:
            self.adapter.load_state_dict(own)


def _recomputed(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose inner activations are computed again for the gradient instead of kept."""

    def again(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(*args)
        return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=False)

    return again
