"""Training of the embedded model by simulated interaction.

    python -m medsam_app.pretrain models/recipes/sam3d_tiny.json --data FOLDER --out RUN
    torchrun --nproc-per-node=2 -m medsam_app.pretrain ...        (gradients averaged over processes)

A round is a decode: first a click, a box or a rough mask, then a click in the largest error, the
previous probability fed back. All rounds carry a loss. The learning rate follows the time spent, so
that a run of so many hours ends where it should on any machine; a run that is started again in the
same folder goes on where it was saved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medsam_app.clicks import click_inside, largest_component, next_click
from medsam_app.models.load import fast_dtype
from medsam_app.models.sam3d import MaskCandidates, RoiPrompts, Sam3D, build_sam3d_tiny
from medsam_app.training_data import Mixture

log = logging.getLogger("medsam_app.pretrain")


class Recipe(BaseModel):
    """Settings of a training run.

    Attributes:
        hours: time after which the learning rate has come down to zero.
        shares: relative frequency of the sources of windows.
        windows: (side in voxels, batch size) pairs, one drawn each step.
        rounds: fewest and most decodes an example.
        ema: decay of the running average of the weights, which is what gets exported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    hours: float
    shares: dict[str, float]
    windows: list[tuple[int, int]]
    rounds: tuple[int, int] = (2, 4)
    learning_rate: float
    weight_decay: float = 0.02
    warmup_steps: int = 100
    ema: float = 0.995
    save_minutes: float = 5.0


class Interaction:
    """The prompts of a batch as they grow, and the simulated person who gives them."""

    def __init__(self, targets: Tensor, rng: np.random.Generator) -> None:
        self.truth = targets[:, 0].cpu().numpy()
        self.rng = rng
        self.device = targets.device
        batch = len(targets)
        self.clicks: list[list[tuple[tuple[int, int, int], bool]]] = [[] for _ in range(batch)]
        self.boxes = np.full((batch, 2, 3), np.nan, dtype=np.float32)
        self.mask: Tensor | None = None
        rough = np.zeros(self.truth.shape, dtype=np.float32)
        for n in range(batch):
            kind = rng.random()
            if kind < 0.74:
                self._click(n, click_inside(self.truth[n], rng=rng if rng.random() < 0.5 else None), True)
            elif kind < 0.92:
                self.boxes[n] = self._box(n, flat=kind > 0.85)
            else:
                rough[n] = self._rough_mask(n)
        if rough.any():
            self.mask = torch.from_numpy(rough)[:, None].to(self.device)

    def _click(self, n: int, voxel: tuple[int, int, int], positive: bool) -> None:
        self.clicks[n].append((voxel, positive))

    def _box(self, n: int, *, flat: bool) -> np.ndarray:
        part, box = largest_component(self.truth[n])
        low = np.array([s.start for s in box], dtype=np.float32)
        high = np.array([s.stop - 1 for s in box], dtype=np.float32)
        if flat:
            axis = int(self.rng.integers(3))
            counts = part.sum(axis=tuple(a for a in range(3) if a != axis))
            index = int(counts.argmax())
            span = np.argwhere(part.take(index, axis=axis))
            others = [a for a in range(3) if a != axis]
            low[others] = np.array([box[a].start for a in others]) + span.min(0)
            high[others] = np.array([box[a].start for a in others]) + span.max(0)
            low[axis] = high[axis] = box[axis].start + index
            jitter = self.rng.normal(size=(2, 3)) * 0.07 * (high - low)
            jitter[:, axis] = 0
        else:
            jitter = self.rng.normal(size=(2, 3)) * 0.07 * (high - low)
        size = np.array(self.truth.shape[1:]) - 1
        corners = np.clip(np.stack([low, high]) + jitter, 0, size)
        return np.sort(corners, axis=0).astype(np.float32)

    def _rough_mask(self, n: int) -> np.ndarray:
        """The truth grown, shrunk or moved: what another tool or another rater might have drawn."""
        truth = self.truth[n]
        steps = int(self.rng.integers(1, 4))
        change = ndimage.binary_dilation if self.rng.random() < 0.5 else ndimage.binary_erosion
        rough = change(truth, iterations=steps)
        rough = np.roll(rough, tuple(self.rng.integers(-2, 3, size=3)), axis=(0, 1, 2))
        return rough if rough.any() else truth

    def prompts(self) -> RoiPrompts:
        most = max(1, max(len(c) for c in self.clicks))
        coords = torch.zeros(len(self.clicks), most, 3)
        labels = torch.full((len(self.clicks), most), -1)
        for n, clicks in enumerate(self.clicks):
            for m, (voxel, positive) in enumerate(clicks):
                coords[n, m] = torch.tensor(voxel, dtype=torch.float32)
                labels[n, m] = int(positive)
        boxes = None if np.isnan(self.boxes).all() else torch.from_numpy(self.boxes).to(self.device)
        return RoiPrompts(coords.to(self.device), labels.to(self.device), boxes, self.mask)

    def correct(self, logits: Tensor, *, careful: bool = False) -> None:
        """Look at (B, 1, X, Y, Z) logits and click in each sample's largest error."""
        self.mask = torch.sigmoid(logits.detach().float())
        masks = (logits.detach()[:, 0] > 0).cpu().numpy()
        for n, mask in enumerate(masks):
            hurried = not careful and self.rng.random() < 0.4
            click = next_click(mask, self.truth[n], rng=self.rng if hurried else None)
            if click is not None:
                self._click(n, *click)


def dice_of(masks: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Dice of (B, M, ...) values in [0, 1] with a (B, 1, ...) target over valid voxels: (B, M)."""
    masks, target = masks * valid, target * valid
    both = (masks * target).flatten(2).sum(-1)
    return (2 * both + 1) / (masks.flatten(2).sum(-1) + target.flatten(2).sum(-1) + 1)


def loss_of(candidates: MaskCandidates, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of one round, and the Dice of the candidate that the model itself would choose (B,)."""
    logits, target, valid = candidates.logits, target.float(), valid.float()
    soft = 1 - dice_of(torch.sigmoid(logits), target, valid)
    entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    entropy = (entropy * valid).flatten(2).sum(-1) / valid.flatten(2).sum(-1).clamp_min(1)
    each = soft + entropy
    with torch.no_grad():
        real = dice_of((logits > 0).float(), target, valid)
        chosen = real.gather(1, candidates.quality.argmax(1, keepdim=True))[:, 0]
    quality = F.mse_loss(candidates.quality, real)
    return (each.min(dim=1).values + 0.2 * each.mean(dim=1)).mean() + 0.5 * quality, chosen


class Trainer:
    """One process of a training run."""

    def __init__(self, recipe: Recipe, data: Path | None, out: Path, device: torch.device) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        torch.manual_seed(recipe.seed)
        self.model: Sam3D = build_sam3d_tiny().to(device)
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.model.amp_dtype = fast_dtype(device)
        self.parameters = list(self.model.parameters())
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self.step, self.seconds = 0, 0.0
        self.mixture = Mixture(data, recipe.shares)
        if (out / "state.json").is_file():
            self._resume()

    def _resume(self) -> None:
        state = json.loads((self.out / "state.json").read_text())
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(load_file(self.out / "model.safetensors"))
        self.average = load_file(self.out / "average.safetensors", device=str(self.device))
        moments = load_file(self.out / "optimizer.safetensors", device=str(self.device))
        for index, parameter in enumerate(self.parameters):
            if f"{index}.exp_avg" not in moments:
                continue
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": moments[f"{index}.exp_avg"],
                "exp_avg_sq": moments[f"{index}.exp_avg_sq"],
            }

    def save(self) -> None:
        """Write the run's state; the last file replaced is the one that says the rest is whole."""
        if self.rank:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        moments = {
            f"{index}.{key}": self.optimizer.state[parameter][key]
            for index, parameter in enumerate(self.parameters)
            for key in ("exp_avg", "exp_avg_sq")
            if key in self.optimizer.state[parameter]  # not before its first finite gradient
        }
        files = {"model": self.model.state_dict(), "average": self.average, "optimizer": moments}
        for name, tensors in files.items():
            save_file({k: v.contiguous() for k, v in tensors.items()}, self.out / f"{name}.tmp")
        for name in files:
            (self.out / f"{name}.tmp").replace(self.out / f"{name}.safetensors")
        state = self.out / "state.tmp"
        state.write_text(json.dumps({"step": self.step, "seconds": self.seconds}))
        state.replace(self.out / "state.json")

    def learning_rate(self) -> float:
        done = min(1.0, self.seconds / (self.recipe.hours * 3600))
        warm = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        return self.recipe.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def train_step(self) -> dict[str, Any]:
        """One update; the same (seed, step, rank) gives the same examples."""
        shared = np.random.default_rng((self.recipe.seed, self.step))
        side, batch = self.recipe.windows[int(shared.integers(len(self.recipe.windows)))]
        rounds = int(shared.integers(self.recipe.rounds[0], self.recipe.rounds[1] + 1))
        rng = np.random.default_rng((self.recipe.seed, self.step, self.rank))
        windows = [self.mixture.draw(int(rng.integers(2**62)), side) for _ in range(batch)]
        image, valid, target = (
            torch.stack([getattr(w, name) for w in windows])[:, None].to(self.device)
            for name in ("image", "valid", "target")
        )
        person = Interaction(target, rng)
        embedding = self.model.encode_image(image, valid)
        losses, scores = [], []
        for number in range(rounds):
            candidates = self.model.decode(embedding, person.prompts())
            loss, dice = loss_of(candidates, target, valid)
            losses.append(loss)
            scores.append(float(dice.mean()))
            if number + 1 < rounds:
                person.correct(candidates.best()[0])
        total = torch.stack(losses).mean()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if torch.isfinite(norm):
            self.optimizer.step()
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value, 1 - decay)
        self.step += 1
        return {"step": self.step, "loss": float(total.detach()), "side": side, "dice": scores, "lr": rate}

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters]
        )
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for parameter in self.parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def run(self) -> None:
        """Train until the recipe's hours are spent."""
        saved = time.monotonic()
        with contextlib.ExitStack() as stack:
            journal = None
            if not self.rank:
                self.out.mkdir(parents=True, exist_ok=True)
                journal = stack.enter_context((self.out / "log.jsonl").open("a"))
            while self.seconds < self.recipe.hours * 3600:
                begin = time.monotonic()
                row = self.train_step()
                spent = torch.tensor(time.monotonic() - begin)
                if self.world > 1:  # every process must follow the same clock
                    dist.broadcast(spent, 0)
                self.seconds += float(spent)
                if journal:
                    journal.write(json.dumps(row | {"seconds": round(self.seconds, 1)}) + "\n")
                    journal.flush()
                if time.monotonic() - saved > self.recipe.save_minutes * 60:
                    self.save()
                    saved = time.monotonic()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "--data", type=Path, help="folder with manifest.json; synthetic windows alone without it"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; started again, it goes on"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    recipe = Recipe.model_validate_json(options.recipe.read_text())
    Trainer(recipe, options.data, options.out, torch.device(options.device)).run()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
