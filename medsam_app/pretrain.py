"""Training of the embedded model by simulated interaction.

    python -m medsam_app.pretrain models/recipes/sam3d_tiny.json --data FOLDER --out RUN
    torchrun --nproc-per-node=2 -m medsam_app.pretrain ...        (gradients averaged over processes)

A round is a decode: first clicks, a box or a rough mask, then a click in the largest error (now and
then one where nothing is wrong), the previous probability fed back. All rounds carry a loss. The
learning rate follows the time spent, so that a run of so many hours ends where it should on any
machine; a run that is started again in the same folder goes on where it was saved.
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
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from medsam_app.errors import MedsamError, SettingsError
from medsam_app.interaction import Interaction
from medsam_app.models.load import fast_dtype
from medsam_app.models.sam3d import MaskCandidates, Sam3D, build_sam3d_tiny
from medsam_app.orthogonal import Muon, matrices
from medsam_app.training_data import Mixture

log = logging.getLogger("medsam_app.pretrain")

#: Weight of the squared error of the predicted quality in the loss.
QUALITY_WEIGHT = 4.0


class Recipe(BaseModel):
    """Settings of a training run.

    Attributes:
        hours: time after which the learning rate has come down to zero.
        shares: relative frequency of the sources of windows.
        windows: (side in voxels, batch size) pairs, one drawn each step.
        rounds: fewest and most decodes an example.
        ema: decay of the running average of the weights, which is what gets exported.
        optimizer: 'adamw', or 'muon', which takes the kernels of linear layers and convolutions and leaves
            the rest to AdamW.
        only: train only parameters whose names begin with this; '' for all.
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
    optimizer: Literal["adamw", "muon"] = "adamw"
    only: str = ""
    save_minutes: float = 5.0


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
    return (each.min(dim=1).values + 0.2 * each.mean(dim=1)).mean() + QUALITY_WEIGHT * quality, chosen


def start_from(model: Sam3D, file: Path) -> list[str]:
    """Take over the weights of a file wherever name and shape agree; names of those that stay fresh."""
    own, found = model.state_dict(), load_file(file)
    fitting = {
        key: value.float()
        for key, value in found.items()
        if value.shape == getattr(own.get(key), "shape", None)
    }
    model.load_state_dict(fitting, strict=False)
    fresh = sorted(set(own) - set(fitting))
    log.info("%d of %d tensors from %s; fresh: %s", len(fitting), len(own), file, ", ".join(fresh) or "none")
    return fresh


class Trainer:
    """One process of a training run."""

    def __init__(
        self, recipe: Recipe, data: Path | None, out: Path, device: torch.device, start: Path | None = None
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        torch.manual_seed(recipe.seed)
        self.model: Sam3D = build_sam3d_tiny().to(device)
        fresh = list(self.model.state_dict()) if start is None else start_from(self.model, start)
        if not all(name.startswith(recipe.only) for name in fresh) and not (out / "state.json").is_file():
            raise SettingsError(
                f"The recipe trains only '{recipe.only}', and the rest of the model would stay untrained; "
                "give --weights with trained weights of this model."
            )
        cast(Any, self.model).to(memory_format=torch.channels_last_3d)
        self.model.amp_dtype = fast_dtype(device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(recipe.only))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimizers = self._optimizers()
        self.step, self.seconds = 0, 0.0
        self.mixture = Mixture(data, recipe.shares)
        if (out / "state.json").is_file():
            self._resume()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for everything, or for what Muon does not take."""
        rate, decay = self.recipe.learning_rate, self.recipe.weight_decay
        taken = matrices(self.model) if self.recipe.optimizer == "muon" else []
        known = {id(parameter) for parameter in taken}
        rest = [parameter for parameter in self.parameters if id(parameter) not in known]
        adamw = torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, 0.98))
        return [adamw, Muon(taken, lr=rate, weight_decay=decay)] if taken else [adamw]

    def _moments(self) -> dict[str, Tensor]:
        """The optimizers' memory by parameter and kind; nothing before a parameter's first gradient."""
        found = {}
        for index, parameter in enumerate(self.parameters):
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    found[f"{index}.{key}"] = value
        return found

    def _resume(self) -> None:
        state = json.loads((self.out / "state.json").read_text())
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(load_file(self.out / "model.safetensors"))
        self.average = load_file(self.out / "average.safetensors", device=str(self.device))
        moments = load_file(self.out / "optimizer.safetensors", device=str(self.device))
        place = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        for optimizer in self.optimizers:
            for parameter in optimizer.param_groups[0]["params"]:
                prefix = f"{place[id(parameter)]}."
                own = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                if own:
                    optimizer.state[parameter] = own

    def save(self) -> None:
        """Write the run's state; the last file replaced is the one that says the rest is whole."""
        if self.rank:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        files = {"model": self.model.state_dict(), "average": self.average, "optimizer": self._moments()}
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
        self.model.zero_grad(set_to_none=True)
        total.backward()
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.learning_rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if torch.isfinite(norm):
                optimizer.step()
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
    parser.add_argument("--weights", type=Path, help="weights to start from, where they fit")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if options.device.startswith("cuda") else "gloo")
    recipe = Recipe.model_validate_json(options.recipe.read_text())
    try:
        Trainer(recipe, options.data, options.out, torch.device(options.device), options.weights).run()
    except MedsamError as error:
        raise SystemExit(f"Error: {error}") from None
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
