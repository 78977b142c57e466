"""Training of the embedded model by simulated interaction: one process of a run, step by step.

A round is a decode: first clicks, a box or a rough mask, then a click in the largest error (now and
then one where nothing is wrong), the previous probability fed back. All rounds carry a loss. The
learning rate follows the time spent, so that a run of this many hours ends where it should on any
machine, or the steps done; a run that is started again in the same folder resumes from its saved state.
`medsam_app.training.loop` repeats the step; `medsam-app pretrain` is the command.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from medsam_app.errors import ModelError, SettingsError, VolumeError, unknown_name
from medsam_app.models.checkpoints import read_checkpoint
from medsam_app.models.load import training_dtype
from medsam_app.models.sam3d import Sam3D, build_sam3d_tiny
from medsam_app.pretraining.recipe import Recipe
from medsam_app.pretraining.windows import MIN_OBJECT_VOXELS, Mixture, RealWindows
from medsam_app.training.checkpoint import is_saved
from medsam_app.training.loss import dice_of, loss_of
from medsam_app.training.muon import Muon, matrices
from medsam_app.training.simulated_user import Interaction
from medsam_app.training.trainer import Trainer

__all__ = ["PretrainTrainer", "Recipe", "dice_of", "loss_of", "start_from"]

log = logging.getLogger("medsam_app.pretraining.trainer")


def start_from(model: Sam3D, file: Path) -> list[str]:
    """Load the weights of a file where name and shape agree; return the names of fresh ones.

    Raises:
        ModelError: the file cannot be read, or holds nothing that fits.
    """
    own, found = model.state_dict(), read_checkpoint(file)
    fitting = {
        key: value.float()
        for key, value in found.items()
        if value.shape == getattr(own.get(key), "shape", None)
    }
    if not fitting:
        raise ModelError(f"No tensor of '{file.name}' fits this model; give weights of sam3d_tiny.")
    model.load_state_dict(fitting, strict=False)
    fresh = sorted(set(own) - set(fitting))
    log.info("%d of %d tensors from %s; fresh: %s", len(fitting), len(own), file, ", ".join(fresh) or "none")
    return fresh


class PretrainTrainer(Trainer[Recipe]):
    """One process of a training run.

    Args:
        recipe: its settings.
        data: folder with a manifest, or None for synthetic windows alone.
        out: folder of the run; a state saved there is resumed.
        device: of this process.
        start: weights that a new run begins with, wherever they fit.

    Raises:
        MedsamError: data, weights or a saved state cannot be read, or do not go with the recipe.
    """

    GROUP, SEPARATE = "model", ("average",)

    def __init__(
        self, recipe: Recipe, data: Path | None, out: Path, device: torch.device, start: Path | None = None
    ) -> None:
        super().__init__(recipe, out, device)
        torch.manual_seed(recipe.seed)
        self.model: Sam3D = build_sam3d_tiny().to(device)
        cast(Any, self.model).to(memory_format=torch.channels_last_3d)
        self.model.amp_dtype = training_dtype(device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(recipe.only))
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            parts = {name.partition(".")[0] for name, _ in self.model.named_parameters()}
            raise SettingsError(unknown_name("part of the model", recipe.only, parts))
        if not is_saved(out):
            fresh = list(self.model.state_dict()) if start is None else start_from(self.model, start)
            if not all(name.startswith(recipe.only) for name in fresh):
                raise SettingsError(
                    f"The recipe trains only '{recipe.only}', and the rest of the model would stay "
                    "untrained; give --weights with trained weights of this model."
                )
        self.start(self.model, parameters, self._optimizers(parameters))
        self.mixture = Mixture(data, recipe.shares, device)
        if any(isinstance(source, RealWindows) and not source.names for _, source in self.mixture.sources):
            raise VolumeError(
                f"No 'train' case of {data} has a label of {MIN_OBJECT_VOXELS} voxels or more; label more, "
                "or take 'real' out of the recipe's shares."
            )

    def _optimizers(self, parameters: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
        """Return AdamW for all parameters, or AdamW and Muon; `only` may leave either out."""
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        taken = matrices(self.model) if self.settings.optimizer == "muon" else []
        known = {id(parameter) for parameter in taken}
        rest = [parameter for parameter in parameters if id(parameter) not in known]
        found: list[torch.optim.Optimizer] = []
        if rest:
            found.append(torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, 0.98)))
        if taken:
            found.append(Muon(taken, lr=rate, weight_decay=decay))
        return found

    def averaged(self) -> Sam3D:
        """A copy of the model with the averaged weights, to be measured."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.load_state_dict(self.average)
        return model

    def train_step(self) -> dict[str, Any]:
        """Make one update; the same (seed, step, rank) gives the same examples."""
        shared = np.random.default_rng((self.settings.seed, self.step))
        side, batch = self.settings.windows[int(shared.integers(len(self.settings.windows)))]
        rounds = int(shared.integers(self.settings.rounds[0], self.settings.rounds[1] + 1))
        rng = np.random.default_rng((self.settings.seed, self.step, self.rank))
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
        rate = self.advance()
        return {"step": self.step, "loss": float(total.detach()), "side": side, "dice": scores, "lr": rate}
