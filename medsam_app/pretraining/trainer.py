"""Training of the embedded model by simulated interaction.

Each round is one decode. The first prompt is clicks, a box or a rough mask. Each further round adds a click
in the largest error (sometimes where nothing is wrong) and feeds the previous probability back. Every round
contributes to the loss. The learning rate depends on the fraction of the run that is done, in time or in
steps. A run started again in the same folder resumes from its saved state. `medsam_app.training.loop` repeats
the steps; `medsam-app pretrain` is the command.
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
    """Load the weights of a file whose names and shapes match; return the names of the other tensors.

    Raises:
        ModelError: the file cannot be read, or no tensor fits.
    """
    state, loaded = model.state_dict(), read_checkpoint(file)
    fitting = {
        key: value.float()
        for key, value in loaded.items()
        if value.shape == getattr(state.get(key), "shape", None)
    }
    if not fitting:
        raise ModelError(f"No tensor of '{file.name}' fits this model; give weights of sam3d_tiny.")
    model.load_state_dict(fitting, strict=False)
    fresh = sorted(set(state) - set(fitting))
    log.info(
        "%d of %d tensors from %s; fresh: %s", len(fitting), len(state), file, ", ".join(fresh) or "none"
    )
    return fresh


class PretrainTrainer(Trainer[Recipe]):
    """One process of a pretraining run.

    Args:
        recipe: settings of the run.
        data: folder with a manifest, or None for synthetic windows alone.
        out: folder of the run; a state saved there is resumed.
        device: device of this process.
        start: file of initial weights, used where they fit; None for random weights.

    Raises:
        MedsamError: data, weights or a saved state cannot be read, or do not match the recipe.
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
        """Return AdamW for all parameters, or AdamW and Muon; without one that has no parameters."""
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        kernels = matrices(self.model) if self.settings.optimizer == "muon" else []
        kernel_ids = {id(parameter) for parameter in kernels}
        rest = [parameter for parameter in parameters if id(parameter) not in kernel_ids]
        optimizers: list[torch.optim.Optimizer] = []
        if rest:
            optimizers.append(torch.optim.AdamW(rest, lr=rate, weight_decay=decay, betas=(0.9, 0.98)))
        if kernels:
            optimizers.append(Muon(kernels, lr=rate, weight_decay=decay))
        return optimizers

    def averaged(self) -> Sam3D:
        """Return a copy of the model with the averaged weights, in evaluation mode."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.load_state_dict(self.average)
        return model

    def train_step(self) -> dict[str, Any]:
        """Make one update and return its row of the log; (seed, step, rank) determine the examples."""
        shared = np.random.default_rng((self.settings.seed, self.step))
        side, batch = self.settings.windows[int(shared.integers(len(self.settings.windows)))]
        rounds = int(shared.integers(self.settings.rounds[0], self.settings.rounds[1] + 1))
        rng = np.random.default_rng((self.settings.seed, self.step, self.rank))
        windows = [self.mixture.draw(int(rng.integers(2**62)), side) for _ in range(batch)]
        image, valid, target = (
            torch.stack([getattr(w, name) for w in windows])[:, None].to(self.device)
            for name in ("image", "valid", "target")
        )
        user = Interaction(target, rng)
        embedding = self.model.encode_image(image, valid)
        losses, scores = [], []
        for number in range(rounds):
            candidates = self.model.decode(embedding, user.prompts())
            loss, dice = loss_of(candidates, target, valid)
            losses.append(loss)
            scores.append(float(dice.mean()))
            if number + 1 < rounds:
                user.correct(candidates.best()[0])
        total = torch.stack(losses).mean()
        self.model.zero_grad(set_to_none=True)
        total.backward()
        rate = self.advance()
        return {"step": self.step, "loss": float(total.detach()), "side": side, "dice": scores, "lr": rate}
