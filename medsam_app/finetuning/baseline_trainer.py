"""Training of a baseline network on the same windows as an adapter: one process of a run, step by step.

The network learns the plan's labels for the same time and takes no clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.losses import DiceCELoss
from safetensors import SafetensorError
from safetensors.torch import save_file

from medsam_app.atomic import replace_file
from medsam_app.datasets.cases import Case
from medsam_app.errors import SaveError, SettingsError, unknown_name
from medsam_app.finetuning.plan import Plan
from medsam_app.finetuning.training_windows import TrainingWindows
from medsam_app.predict.baseline_file import BASELINE_NETS, write_header
from medsam_app.predict.baseline_net import build_baseline, network_input
from medsam_app.training.checkpoint import (
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
FILES = ("net", "average", "optimizer")


def check_baseline(name: str, plan: Plan) -> None:
    """Check that a network can be trained by a plan.

    Raises:
        SettingsError: an unknown name, or windows that do not fit the network.
    """
    if name not in BASELINE_NETS:
        raise SettingsError(unknown_name("baseline", name, BASELINE_NETS))
    if name == "swin_unetr" and find_spec("einops") is None:
        raise SettingsError("swin_unetr needs einops, which is not installed; run 'pip install einops'.")
    if name == "swin_unetr" and (any(side % 32 for side in plan.window) or max(plan.window) < 64):
        sides = " x ".join(str(side) for side in plan.window)
        raise SettingsError(
            "swin_unetr needs windows with sides of multiples of 32, one of them 64 or more; 'window' is "
            f"{sides}."
        )


class BaselineTrainer:
    """One process of the training of a network.

    Args:
        name: of `BASELINE_NETS`.
        plan: of the adapter's run: windows, batch, length and variations are the same.
        cases: that the adapter was taught on.
        out: folder of the training; a state saved there is taken up.
        device: of this process.
        memory: bytes for cached cases.

    Raises:
        MedsamError: a case or a saved state cannot be read.
    """

    def __init__(
        self, name: str, plan: Plan, cases: Sequence[Case], out: Path, device: torch.device, *, memory: float
    ) -> None:
        check_baseline(name, plan)
        self.name, self.plan, self.out, self.device = name, plan, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.net = build_baseline(name, len(plan.labels)).to(device)
        self.parameters = list(self.net.parameters())
        rate = plan.learning_rate
        self.optimizers = [torch.optim.AdamW(self.parameters, lr=rate, weight_decay=plan.weight_decay)]
        self.average = {key: value.clone() for key, value in self.net.state_dict().items()}
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.step, self.seconds = 0, 0.0
        if is_saved(out):
            self._resume()
        self.windows = TrainingWindows(cases, plan, memory=memory)

    @property
    def recipe(self) -> Plan:
        """How long the training is."""
        return self.plan

    def done(self) -> float:
        """Which part of the training is behind, from 0 to 1."""
        return self.plan.done(self.step, self.seconds)

    def train_step(self) -> dict[str, Any]:
        """One update; its line in the log."""
        plan = self.plan
        first = self.step * plan.batch
        own = [self.windows.draw(n) for n in range(first + self.rank, first + plan.batch, self.world)]
        image, valid, labels = (
            torch.stack([getattr(window, key) for window in own])[:, None].to(self.device)
            for key in ("image", "valid", "labels")
        )
        self.net.zero_grad(set_to_none=True)
        loss = self.loss(self.net(network_input(image, valid)), labels)
        loss.backward()
        average_gradients(self.parameters, self.world)
        rate = rate_at(plan.learning_rate, self.done(), self.step, plan.warmup_steps)
        update(self.optimizers, self.parameters, rate)
        follow(self.average, self.net.state_dict(), plan.ema, self.step)
        self.step += 1
        return {"step": self.step, "loss": float(loss.detach()), "dice": [], "lr": rate}

    def save(self) -> None:
        """Write the training's state.

        Raises:
            SaveError: it could not be written.
        """
        if self.rank == 0:
            tensors = (self.net.state_dict(), self.average, moments(self.optimizers, self.parameters))
            state = {"step": self.step, "seconds": self.seconds}
            write_state(self.out, dict(zip(FILES, tensors, strict=True)), state)

    def _resume(self) -> None:
        state, (net, average, optimizer) = read_state(self.out, FILES)
        try:
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.net.load_state_dict(net)
            self.average = average
            take_moments(self.optimizers, self.parameters, optimizer)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise damaged(self.out) from None

    def keep(self, path: Path) -> None:
        """Write the averaged network as a file that `BaselineNet` reads.

        Raises:
            SaveError: it could not be written.
        """
        header = write_header(self.name, self.plan.model_dump_json())
        try:
            with replace_file(path) as draft:
                save_file({k: v.contiguous() for k, v in self.average.items()}, draft, metadata=header)
        except (OSError, SafetensorError) as error:
            raise SaveError(f"{path} could not be written ({error}); make room there.") from None
