"""Base class of trainers: step and clock, optimizers, running average, saved state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from medsam_app.errors import AdapterError
from medsam_app.training.checkpoint import (
    average_gradients,
    damaged,
    follow,
    is_saved,
    moments,
    rate_at,
    read_state,
    restore_moments,
    update,
    write_state,
)
from medsam_app.training.run_settings import RunSettings

Settings = TypeVar("Settings", bound=RunSettings)


class Trainer(ABC, Generic[Settings]):
    """One process of a training run.

    A subclass builds its module and optimizers and passes them to `start`; its `train_step` computes
    gradients and calls `advance`. `medsam_app.training.loop.run` repeats the steps.

    Args:
        settings: settings of the run.
        out: folder of the run; `start` resumes a state saved there.
        device: device of this process.

    Attributes:
        rank, world: index of this process, and number of processes of the run.
        step, seconds: updates and training time so far.
        parameters: parameters that are trained.
        average: running average of the module's tensors, by name.
    """

    #: Name of the trained tensors in a saved state, next to 'average' and 'optimizer'.
    GROUP: ClassVar[str]
    #: Groups of a saved state that are also written to a separate file.
    SEPARATE: ClassVar[Sequence[str]] = ()

    def __init__(self, settings: Settings, out: Path, device: torch.device) -> None:
        self.settings, self.out, self.device = settings, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.step, self.seconds = 0, 0.0

    def start(
        self, module: nn.Module, parameters: Sequence[nn.Parameter], optimizers: Sequence[Optimizer]
    ) -> None:
        """Prepare to train a module, and resume the state saved in the run folder if there is one.

        Args:
            module: the module whose state is averaged and saved.
            parameters: parameters of the module that are trained.
            optimizers: optimizers of these parameters.

        Raises:
            ModelError: the saved state is damaged or of another module.
        """
        self._module, self.parameters, self.optimizers = module, list(parameters), list(optimizers)
        self.average = {key: value.clone() for key, value in module.state_dict().items()}
        if is_saved(self.out):
            self._resume()

    @abstractmethod
    def train_step(self) -> dict[str, Any]:
        """Make one update and return its row of the log."""

    def done(self) -> float:
        """Return the fraction of the run that is done, from 0 to 1."""
        return self.settings.done(self.step, self.seconds)

    def learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        settings = self.settings
        return rate_at(settings.learning_rate, self.done(), self.step, settings.warmup_steps)

    def advance(self) -> float:
        """Update the parameters with the mean gradients of all processes; return the learning rate."""
        average_gradients(self.parameters, self.world)
        rate = self.learning_rate()
        update(self.optimizers, self.parameters, rate)
        follow(self.average, self._module.state_dict(), self.settings.ema, self.step)
        self.step += 1
        return rate

    def counters(self) -> dict[str, Any]:
        """Return the counters of the saved state, which `restore_counters` reads."""
        return {"step": self.step, "seconds": self.seconds}

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """Set the counters of a saved state."""
        self.step, self.seconds = int(counters["step"]), float(counters["seconds"])

    def save(self) -> None:
        """Write the state of the run in the first process; do nothing in the others.

        Raises:
            SaveError: the state could not be written.
        """
        if self.rank == 0:
            tensors = (self._module.state_dict(), self.average, moments(self.optimizers, self.parameters))
            groups = dict(zip(self._groups(), tensors, strict=True))
            write_state(self.out, groups, self.counters(), beside=self.SEPARATE)

    def _groups(self) -> tuple[str, str, str]:
        return self.GROUP, "average", "optimizer"

    def _resume(self) -> None:
        """Restore the saved state, so that the next step is the same as without an interruption."""
        counters, (tensors, average, optimizer) = read_state(self.out, self._groups())
        try:
            self.restore_counters(counters)
            self._module.load_state_dict(tensors)
            for key, value in average.items():
                self.average[key].copy_(value)
            restore_moments(self.optimizers, self.parameters, optimizer)
        except (KeyError, TypeError, ValueError, RuntimeError, AdapterError):
            raise damaged(self.out) from None
