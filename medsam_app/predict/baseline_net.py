"""A network of MONAI's that learns from the same lessons, to say whether an adapter is worth it.

It is taught the plan's labels on the same windows for the same time, and has no use for clicks. What it
scores beside the adapter is what the same data and the same time buy without a pretrained model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import SwinUNETR, UNet
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medsam_app.atomic import replace_file
from medsam_app.datasets.cases import Case
from medsam_app.errors import ModelError, SaveError, SettingsError, unknown_name
from medsam_app.finetuning.training_windows import Lessons, levelled
from medsam_app.finetuning.plan import Plan
from medsam_app.grid.roi import read_roi
from medsam_app.io.volume import Volume
from medsam_app.predict.core.prediction import LabelMap
from medsam_app.predict.whole_volume import paint, whole_roi
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

#: Names that can be asked for.
RIVALS = ("unet", "swin_unetr")
#: Tensors of a saved run.
FILES = ("net", "average", "optimizer")
#: What stands in the header of a saved net.
FORMAT = "medsam_app rival net 1"


def check_rival(name: str, plan: Plan) -> None:
    """Refuse what cannot be built.

    Raises:
        SettingsError: an unknown name, or windows that do not fit the network.
    """
    if name not in RIVALS:
        raise SettingsError(unknown_name("baseline", name, RIVALS))
    if name == "swin_unetr" and find_spec("einops") is None:
        raise SettingsError("swin_unetr needs einops, which is not installed; run 'pip install einops'.")
    if name == "swin_unetr" and (any(side % 32 for side in plan.window) or max(plan.window) < 64):
        sides = " x ".join(str(side) for side in plan.window)
        raise SettingsError(
            "swin_unetr needs windows with sides of multiples of 32, one of them 64 or more; 'window' is "
            f"{sides}."
        )


def build(name: str, labels: int) -> nn.Module:
    """A fresh network for (B, 2, X, Y, Z) of intensity and validity: (B, 1 + labels, X, Y, Z) logits."""
    if name == "swin_unetr":
        return SwinUNETR(in_channels=2, out_channels=1 + labels, feature_size=24)
    return UNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=1 + labels,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )


class RivalTrainer:
    """One process of the training of a network.

    Args:
        name: of `RIVALS`.
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
        check_rival(name, plan)
        self.name, self.plan, self.out, self.device = name, plan, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self.net = build(name, len(plan.labels)).to(device)
        self.parameters = list(self.net.parameters())
        rate = plan.learning_rate
        self.optimizers = [torch.optim.AdamW(self.parameters, lr=rate, weight_decay=plan.weight_decay)]
        self.average = {key: value.clone() for key, value in self.net.state_dict().items()}
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.step, self.seconds = 0, 0.0
        if is_saved(out):
            self._resume()
        self.lessons = Lessons(cases, plan, memory=memory)

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
        own = [self.lessons.draw(n) for n in range(first + self.rank, first + plan.batch, self.world)]
        image, valid, labels = (
            torch.stack([getattr(lesson, key) for lesson in own])[:, None].to(self.device)
            for key in ("image", "valid", "labels")
        )
        self.net.zero_grad(set_to_none=True)
        loss = self.loss(self.net(_seen(image, valid)), labels)
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
        """Write the averaged network as a file that `RivalNet` reads.

        Raises:
            SaveError: it could not be written.
        """
        header = {"format": FORMAT, "name": self.name, "plan": self.plan.model_dump_json()}
        try:
            with replace_file(path) as draft:
                save_file({k: v.contiguous() for k, v in self.average.items()}, draft, metadata=header)
        except (OSError, SafetensorError) as error:
            raise SaveError(f"{path} could not be written ({error}); make room there.") from None


class RivalNet:
    """A trained network as a method of an evaluation: it finds all of its labels in a volume.

    Args:
        path: what `RivalTrainer.keep` wrote.
        device: where it runs.

    Raises:
        ModelError: no such file, or not one of these.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            with safe_open(path, framework="np") as file:
                header = file.metadata() or {}
            if header.get("format") != FORMAT or header.get("name") not in RIVALS:
                raise ValueError
            self.name = header["name"]
            self.plan = Plan.model_validate(json.loads(header["plan"]))
            net = build(self.name, len(self.plan.labels))
            net.load_state_dict(load_file(path))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
            raise ModelError(
                f"'{path}' is no network that medsam-app finetune --baseline has written; give such a file."
            ) from None
        self.net = net.to(device).eval().requires_grad_(False)
        self.device = device
        self._volume: Volume | None = None

    @property
    def labels(self) -> Collection[int]:
        """Values that it was taught."""
        return tuple(self.plan.labels)

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""
        self._volume = volume

    def predict_labels(self) -> NDArray[np.integer]:
        """(i, j, k) values of labels on the volume's grid, 0 for none of them."""
        return self.label_map().array

    @torch.inference_mode()
    def label_map(self, *, probabilities: bool = False) -> LabelMap:
        """The labels with their names; where asked for, with the probability of each against background."""
        began = time.perf_counter()
        assert self._volume is not None
        volume, plan = self._volume, self.plan
        roi = whole_roi(volume.grid, (plan.spacing,) * 3, plan.window)
        image, valid = read_roi(volume.array, roi)
        look = _seen(levelled(image, valid, plan.clip)[None, None], valid[None, None])
        how: dict[str, Any] = {"overlap": 0.5, "mode": "gaussian", "sw_device": self.device}
        logits: Any = sliding_window_inference(
            look, plan.window, 1, self.net, device=torch.device("cpu"), **how
        )
        above = logits[0, 1:] - logits[0, :1]
        values = list(plan.labels)
        array = np.zeros(volume.shape, dtype=np.min_scalar_type(max(values)))
        best = np.zeros(volume.shape, dtype=np.float32)
        chances = {value: np.zeros(volume.shape, dtype=np.uint8) for value in values} if probabilities else {}
        paint(above, roi, values, array=array, best=best, chances=chances)
        return LabelMap(volume.grid, array, dict(plan.labels), time.perf_counter() - began, chances)


def _seen(image: Tensor, valid: Tensor) -> Tensor:
    """(B, 2, X, Y, Z) intensities in about -1 to 1, and validity."""
    inside = valid.float()
    return torch.cat([(2 * image - 1) * inside, inside], dim=1)
