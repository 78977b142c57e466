"""Training of a baseline network on the same windows as an adapter.

The network learns the plan's labels in a run of the same length, and accepts no clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
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
from medsam_app.training.trainer import Trainer


def check_baseline(name: str, plan: Plan) -> None:
    """Check that a network can be trained with a plan.

    Raises:
        SettingsError: the name is unknown, or the windows do not fit the network.
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


class BaselineTrainer(Trainer[Plan]):
    """One process of a run that trains a baseline network.

    Args:
        name: name of a network in `BASELINE_NETS`.
        plan: plan of the adapter's run; windows, batch, length and variations are the same.
        cases: cases that the adapter was trained on.
        out: folder of the run; a state saved there is resumed.
        device: device of this process.
        memory: bytes for cached cases.

    Raises:
        MedsamError: a case or a saved state cannot be read.
    """

    GROUP = "net"

    def __init__(
        self, name: str, plan: Plan, cases: Sequence[Case], out: Path, device: torch.device, *, memory: float
    ) -> None:
        check_baseline(name, plan)
        super().__init__(plan, out, device)
        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.net = build_baseline(name, len(plan.labels)).to(device)
        parameters, rate = list(self.net.parameters()), plan.learning_rate
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=plan.weight_decay)
        self.start(self.net, parameters, [optimizer])
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.windows = TrainingWindows(cases, plan, memory=memory)

    def train_step(self) -> dict[str, Any]:
        """Make one update and return its row of the log."""
        plan = self.settings
        first = self.step * plan.batch
        windows = [self.windows.draw(n) for n in range(first + self.rank, first + plan.batch, self.world)]
        image, valid, labels = (
            torch.stack([getattr(window, key) for window in windows])[:, None].to(self.device)
            for key in ("image", "valid", "labels")
        )
        self.net.zero_grad(set_to_none=True)
        loss = self.loss(self.net(network_input(image, valid)), labels)
        loss.backward()
        rate = self.advance()
        return {"step": self.step, "loss": float(loss.detach()), "dice": [], "lr": rate}

    def keep(self, path: Path) -> None:
        """Write the averaged network as a file that `BaselineNet` reads.

        Raises:
            SaveError: the file could not be written.
        """
        header = write_header(self.name, self.settings.model_dump_json())
        try:
            with replace_file(path) as draft:
                save_file({k: v.contiguous() for k, v in self.average.items()}, draft, metadata=header)
        except (OSError, SafetensorError) as error:
            raise SaveError(f"{path} could not be written ({error}); make room there.") from None
