"""Training loss of one round, and the Dice that is logged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medsam_app.models.sam3d import MaskCandidates

#: Weight of the squared error of the predicted quality in the loss.
QUALITY_WEIGHT = 4.0


def dice_of(masks: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the Dice (B, M) of masks with a target over valid voxels.

    Args:
        masks: (B, M, ...) values in [0, 1].
        target: (B, 1, ...) booleans or values in [0, 1].
        valid: (B, 1, ...) whether the voxel counts.
    """
    masks, target = masks * valid, target * valid
    both = (masks * target).flatten(2).sum(-1)
    return (2 * both + 1) / (masks.flatten(2).sum(-1) + target.flatten(2).sum(-1) + 1)


def loss_of(
    candidates: MaskCandidates, target: Tensor, valid: Tensor, *, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of one round, and the Dice (B,) of the candidate that the model would choose.

    Args:
        candidates: output of the mask decoder.
        target: (B, 1, X, Y, Z) voxels of the object.
        valid: (B, 1, X, Y, Z) whether the voxel lies in the volume.
        known: (B,) whether the prompt determines the label. If it does, all candidates count. Otherwise the
            prompt is ambiguous and mainly the best candidate counts.
    """
    logits, target, valid = candidates.logits, target.float(), valid.float()
    soft = 1 - dice_of(torch.sigmoid(logits), target, valid)
    entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    entropy = (entropy * valid).flatten(2).sum(-1) / valid.flatten(2).sum(-1).clamp_min(1)
    losses = soft + entropy
    with torch.no_grad():
        real = dice_of((logits > 0).float(), target, valid)
        chosen = real.gather(1, candidates.quality.argmax(1, keepdim=True))[:, 0]
    quality = F.mse_loss(candidates.quality, real)
    best, mean = losses.min(dim=1).values, losses.mean(dim=1)
    if known is not None:
        best = torch.where(known, mean, best)
    return (best + 0.2 * mean).mean() + QUALITY_WEIGHT * quality, chosen
