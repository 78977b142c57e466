"""Prediction of a mask's Dice from its token and statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.layers import Mlp

#: Number of statistics per mask, see `mask_statistics`.
STATISTICS = 10


class QualityHead(nn.Module):
    """Predictor of each candidate's Dice, which is used to select candidates and windows.

    Args:
        dim: channels of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim + STATISTICS, dim, 1)

    def forward(
        self, tokens: Tensor, logits: Tensor, half: Tensor, evidence: Tensor, previous: Tensor | None
    ) -> Tensor:
        """Predict the Dice (B, M) from (B, M, C) tokens; see `mask_statistics` for the other arguments."""
        statistics = mask_statistics(logits.detach(), half, evidence, previous)
        with torch.autocast(logits.device.type, enabled=False):
            # The statistics are roughly in [0, 1]; scaled to [-2, 2], they weigh as much as the tokens.
            return torch.sigmoid(self.mlp(torch.cat([tokens.float(), 4 * statistics - 2], dim=-1)))[..., 0]


def mask_statistics(logits: Tensor, half: Tensor, evidence: Tensor, previous: Tensor | None) -> Tensor:
    """Return statistics of masks that need no ground truth.

    Args:
        logits: (B, M, X, Y, Z) float32 of M masks; X, Y and Z even.
        half: (B, 2, X / 2, Y / 2, Z / 2) normalised intensities in [-1, 1], at half the resolution.
        evidence: (B, 1, X, Y, Z) evidence of the random walker, in [-1, 1].
        previous: (B, 1, X, Y, Z) probability of a previous mask, or None.

    Returns:
        The statistics, (B, M, 10): mean probability inside the mask; Dice of the probability with the mask;
        size on a logarithmic scale (0 for one voxel, 1 for the whole window); fraction of the window's faces
        that the mask covers; Dice with the random walker's mask; Dice with the previous mask; for both
        channels of the image, the intensity step across the outline, and then the standard deviation inside,
        all in standard deviations of the window.
    """
    probability, mask = torch.sigmoid(logits), (logits > 0).float()
    voxels = mask.flatten(2).sum(-1)
    inside = (probability * mask).flatten(2).sum(-1) / voxels.clamp_min(1)
    size = voxels.clamp_min(1).log() / math.log(math.prod(mask.shape[2:]))
    faces = torch.stack(
        [mask.select(axis, end).flatten(2).mean(-1) for axis in (2, 3, 4) for end in (0, -1)]
    ).mean(0)
    walker_overlap = _dice(mask, (evidence > 0).float())
    previous_overlap = (
        torch.zeros_like(walker_overlap) if previous is None else _dice(mask, (previous > 0.5).float())
    )
    statistics = torch.stack(
        [inside, _dice(probability, mask), size, faces, walker_overlap, previous_overlap], dim=-1
    )
    return torch.cat([statistics, _contrast(mask, half)], dim=-1)


def _dice(a: Tensor, b: Tensor) -> Tensor:
    """Return the Dice (B, M) of (B, M, ...) masks; zero if both are empty."""
    return 2 * (a * b).flatten(2).sum(-1) / (a.flatten(2).sum(-1) + b.flatten(2).sum(-1)).clamp_min(1)


def _contrast(mask: Tensor, half: Tensor) -> Tensor:
    """Return the steps across the outline and the deviations inside, (B, M, 4), at half the resolution."""
    mask, image = F.avg_pool3d(mask, 2), half.float().flatten(2)
    grown, shrunk = F.max_pool3d(mask, 3, 1, 1), -F.max_pool3d(-mask, 3, 1, 1)
    scale = image.std(dim=-1).clamp_min(1e-3)[:, None]

    def mean(weights: Tensor, values: Tensor) -> Tensor:
        weights = weights.flatten(2)
        return weights @ values.transpose(1, 2) / weights.sum(-1, keepdim=True).clamp_min(1e-3)

    step = (mean(mask - shrunk, image) - mean(grown - mask, image)).abs() / scale
    spread = (mean(mask, image.square()) - mean(mask, image).square()).clamp_min(0).sqrt() / scale
    return torch.cat([step.clamp_max(4) / 2, spread.clamp_max(2)], dim=-1)
