"""Training of an adapter by simulated interaction: one process of a run, step by step.

A lesson is a window and a label. Labels of the window are requested without a prompt, by what is learned of
them; then the lesson's own is played as people do: a click, a box, a rough mask, ..., and clicks where the
mask is most wrong, the previous probability fed back. All of these carry a loss. What is trained is the
adapter alone; the base stays as it is.
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

#: In the folder of a run: the adapter that measured best.
BEST = "best.safetensors"
#: Layers of the decoder that work on every voxel: they cost a third of the time and are general enough.
FULL_SIZE = ("full", "mix_full")
#: Learning rate of learned prompts, as a multiple of that of everything else.
FASTER = 5.0


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


class FinetuneTrainer(Trainer[Plan]):
    """One process of a run.

    Args:
        plan: what is done.
        cases: trained on.
        held_out: measured on; there may be none.
        out: folder of the run; a state saved there is resumed.
        device: of this process.
        weights: of the base, instead of the published ones.
        memory: bytes for cached cases, and as many for cached embeddings where the plan wants them.

    Raises:
        MedsamError: a case, the base or a saved state cannot be read, or they do not go together.
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
            {"params": [p for p in parameters if all(p is not other for other in prompts)]},
            {"params": prompts, "faster": FASTER, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            betas=(0.9, 0.98),
        )

    def settled(self) -> bool:
        """Return whether validation has not improved for `patience` measurements."""
        return 0 < self.settings.patience <= self.stale

    def train_step(self) -> dict[str, Any]:
        """One update; its line in the log. The same windows, however many processes share them."""
        plan = self.settings
        rng = np.random.default_rng((plan.seed, 4, self.step))
        rounds = int(rng.integers(plan.rounds[0], plan.rounds[1] + 1))
        first = self.step * plan.batch
        own = range(first + self.rank, first + plan.batch, self.world)
        self.adapter.zero_grad(set_to_none=True)
        size = plan.micro_batch or len(own)
        told = torch.zeros(2 + rounds, dtype=torch.float64)
        for start in range(0, len(own), size):
            windows = [self.windows.draw(number) for number in own[start : start + size]]
            loss, dice = self.episodes.run(windows, rounds)
            part = len(windows) / len(own)
            (loss * part).backward()
            told += part * torch.tensor([float(loss.detach()), *dice], dtype=torch.float64)
        rate = self.advance()
        if self.world > 1:
            told = told.to(self.device)
            dist.all_reduce(told)
            told /= self.world
        loss, automatic, *scores = told.tolist()
        row = {"step": self.step, "loss": loss, "dice": scores, "lr": rate}
        return row | ({"automatic": automatic} if plan.automatic else {})

    def measure(self, stopped: Callable[[], bool]) -> dict[str, list[float]] | None:
        """Mean Dice on the held-out cases with the averaged adapter, which is kept where it is the best."""
        if self.validation is None:
            return None
        with self._averaged():
            found = self.validation.measure(self.model, self.adapter, stopped=stopped)
            if found is None:
                return None
            score = self.validation.score(found)
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
        """Return the card for the adapter's file."""
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
        """Return the step, the clock and the course of the validations."""
        return super().counters() | {"best": self.best, "stale": self.stale}

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """Set the numbers of a saved state."""
        super().restore_counters(counters)
        self.best, self.stale = float(counters["best"]), int(counters["stale"])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The adapter with its averaged tensors, for measuring and for keeping."""
        own = {key: value.clone() for key, value in self.adapter.state_dict().items()}
        self.adapter.load_state_dict(self.average)
        try:
            yield
        finally:
            self.adapter.load_state_dict(own)
