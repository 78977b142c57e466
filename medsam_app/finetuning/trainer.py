"""Training of an adapter by simulated interaction.

A training example is a window and a label. Some labels of the window are segmented with only their learned
prompts. Then a simulated user segments the example's label: first with a click, a box or a rough mask, then
with clicks in the largest error, while the previous probability is fed back. Every output contributes to the
loss. Only the adapter is trained; the base is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from medsam_app.adapters.adapter import Adapter
from medsam_app.adapters.header import AdapterCard
from medsam_app.datasets.cases import Case
from medsam_app.errors import SettingsError
from medsam_app.finetuning.episode import EpisodeRunner
from medsam_app.finetuning.plan import Plan
from medsam_app.finetuning.training_windows import TrainingWindows
from medsam_app.finetuning.validation import HeldOutValidation
from medsam_app.models.load import load_model, training_dtype
from medsam_app.models.sam3d import Sam3D
from medsam_app.training.trainer import Trainer

#: File in the folder of a run: the adapter with the best validation.
BEST = "best.safetensors"
#: Layers of the decoder at full resolution. They would take a third of the time and need no training.
FULL_SIZE = ("full", "mix_full")
#: Learning rate of learned prompts, relative to that of all other tensors.
FASTER = 5.0


def fresh_adapter(model: Sam3D, plan: Plan) -> Adapter:
    """Return a new, enabled adapter for a plan; the same seed gives the same tensors.

    Raises:
        AdapterError: the model does not allow this adapter.
    """
    also = set() if plan.cached else set(model.taught)
    if "decoder" in model.taught:  # untrained
        also.add("decoder")
    elif plan.decoder:
        parts = model.decoder.named_children(), model.decoder.named_parameters(recurse=False)
        also |= {f"decoder.{name}" for group in parts for name, _ in group if name not in FULL_SIZE}
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


class FinetuneTrainer(Trainer[Plan]):
    """One process of a fine-tuning run.

    Args:
        plan: plan of the run.
        cases: cases to train on.
        held_out: cases for validation; may be empty.
        out: folder of the run; a state saved there is resumed.
        device: device of this process.
        weights: weights of the base; None for the published ones.
        memory: bytes for cached cases, and as many for embeddings if the plan caches them.

    Raises:
        MedsamError: a case, the base or a saved state cannot be read, or they do not match.
    """

    GROUP = "adapter"

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
        super().__init__(plan, out, device)
        if plan.batch % self.world:
            raise SettingsError(
                f"{self.world} processes cannot share {plan.batch} windows an update evenly; make 'batch' a "
                f"multiple of {self.world}."
            )
        self.model = cast(Sam3D, load_model(plan.base, device=device, weights=weights))
        self.model.amp_dtype = training_dtype(device)
        self.adapter = fresh_adapter(self.model, plan)
        self.best, self.stale = -1.0, 0
        parameters = [p for p in self.adapter.parameters() if p.requires_grad]
        self.start(self.adapter, parameters, [self._optimizer(parameters)])
        self.windows = TrainingWindows(cases, plan, memory=memory)
        self.validation = HeldOutValidation(held_out, plan) if held_out and self.rank == 0 else None
        self.episodes = EpisodeRunner(self.model, self.adapter, plan, memory=memory)

    def _optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return AdamW, with a higher learning rate for learned prompts, which start at zero."""
        prompts = list(self.adapter.prompts.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if all(p is not prompt for prompt in prompts)]},
            {"params": prompts, "faster": FASTER, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.98),
        )

    def stalled(self) -> bool:
        """Return whether validation has not improved `patience` times."""
        return 0 < self.settings.patience <= self.stale

    def train_step(self) -> dict[str, Any]:
        """Make one update and return its row of the log.

        The windows of an update do not depend on the number of processes.
        """
        plan = self.settings
        rng = np.random.default_rng((plan.seed, 4, self.step))
        rounds = int(rng.integers(plan.rounds[0], plan.rounds[1] + 1))
        first = self.step * plan.batch
        numbers = range(first + self.rank, first + plan.batch, self.world)
        self.adapter.zero_grad(set_to_none=True)
        size = plan.micro_batch or len(numbers)
        totals = torch.zeros(2 + rounds, dtype=torch.float64)
        for start in range(0, len(numbers), size):
            windows = [self.windows.draw(number) for number in numbers[start : start + size]]
            loss, dice = self.episodes.run(windows, rounds)
            weight = len(windows) / len(numbers)
            (loss * weight).backward()
            totals += weight * torch.tensor([float(loss.detach()), *dice], dtype=torch.float64)
        rate = self.advance()
        if self.world > 1:
            totals = totals.to(self.device)
            dist.all_reduce(totals)
            totals /= self.world
        loss, automatic, *scores = totals.tolist()
        row = {"step": self.step, "loss": loss, "dice": scores, "lr": rate}
        return row | ({"automatic": automatic} if plan.automatic else {})

    def measure(self, stopped: Callable[[], bool]) -> dict[str, list[float]] | None:
        """Measure the averaged adapter on held-out cases, and save it if it is the best so far.

        Args:
            stopped: checked between batches.

        Returns:
            Mean Dice by kind of measurement; None if stopped, or without held-out cases.
        """
        if self.validation is None:
            return None
        with self._averaged():
            scores = self.validation.measure(self.model, self.adapter, stopped=stopped)
            if scores is None:
                return None
            score = self.validation.score(scores)
            self.stale += 1
            if score > self.best:
                self.best, self.stale = score, 0
                self.adapter.save(self.out / BEST, self.card(scores))
        return scores

    def keep_last(self, path: Path) -> None:
        """Save the current averaged adapter."""
        with self._averaged():
            self.adapter.save(path, self.card({}))

    def card(self, measured: Mapping[str, Sequence[float]]) -> AdapterCard:
        """Return the card for the adapter's file.

        Args:
            measured: mean Dice by kind of measurement.
        """
        plan, clip = self.settings, self.settings.clip
        method: dict[str, Any] = {"method": "window"}
        if clip is not None:
            method = {"method": "clip", "low": clip[0], "high": clip[1]}
        training = {"step": self.step, "minutes": round(self.seconds / 60, 1), "cases": self.windows.count}
        return AdapterCard(
            spacing=(plan.spacing,) * 3,
            window=plan.window,
            intensity=method,
            labels=plan.labels,
            training=training | {"dice": {k: [round(x, 4) for x in v] for k, v in measured.items()}},
        )

    def counters(self) -> dict[str, Any]:
        """Return the step, the clock and the progress of the validations."""
        return super().counters() | {"best": self.best, "stale": self.stale}

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """Set the counters of a saved state."""
        super().restore_counters(counters)
        self.best, self.stale = float(counters["best"]), int(counters["stale"])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Use the averaged tensors in the adapter while the context is open."""
        current = {key: value.clone() for key, value in self.adapter.state_dict().items()}
        self.adapter.load_state_dict(self.average)
        try:
            yield
        finally:
            self.adapter.load_state_dict(current)
