"""Random walker segmentation of a window, solved in batches.

Grady, "Random walks for image segmentation", IEEE TPAMI 2006: the probability that a random walk from a voxel
reaches an inside seed first. A small pull towards background everywhere (Grady's prior term) is added. The
linear system is solved by conjugate gradients with a Jacobi preconditioner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Contrast parameter: a higher value makes walks less likely to cross edges.
BETA = 3000.0
#: Conductance from every voxel to the background.
BACKGROUND_PULL = 1e-5


def edge_weights(image: Tensor, valid: Tensor) -> list[tuple[int, Tensor]]:
    """Return the conductance between each voxel and its next neighbour along each axis.

    Args:
        image: (B, C, X, Y, Z) intensities in [-1, 1].
        valid: (B, 1, X, Y, Z) booleans, inside the volume; conductances across its border are zero.

    Returns:
        For each axis, the offset of the next neighbour in the flattened window (C order), and the
        conductances (B, X Y Z - offset), zero for the last voxel along the axis. In this flat layout all
        neighbours along an axis are one contiguous slice.
    """
    channels, shape = image.shape[1], image.shape[2:]
    spread = image.flatten(1).std(dim=1).clamp_min(1e-3).view(-1, 1)
    scale = BETA / (10.0 * spread * channels**0.5)
    voxels, inside, weights = image.flatten(2), valid.flatten(1), []
    for axis, n in enumerate(shape):
        step = math.prod(shape[axis + 1 :])
        has_next = torch.ones(shape, dtype=torch.bool, device=image.device)
        has_next.select(axis, n - 1).fill_(False)
        connected = inside[:, step:] & inside[:, :-step] & has_next.flatten()[:-step]
        squared_change = (voxels[..., step:] - voxels[..., :-step]).square().sum(1)
        weights.append((step, (torch.exp(-scale * squared_change) + 1e-6) * connected))
    return weights


def _neighbours(x: Tensor, weights: list[tuple[int, Tensor]]) -> Tensor:
    """Return the sum over the six neighbours of conductance times value, (B, X Y Z)."""
    total = torch.zeros_like(x)
    for step, weight in weights:
        total[:, :-step].addcmul_(weight, x[:, step:])
        total[:, step:].addcmul_(weight, x[:, :-step])
    return total


@torch.no_grad()
def random_walker(
    image: Tensor,
    valid: Tensor,
    inside: Tensor,
    outside: Tensor,
    *,
    start: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> Tensor:
    """Return the probability of inside for every voxel.

    Args:
        image: (B, C, X, Y, Z) intensities in [-1, 1].
        valid: (B, 1, X, Y, Z) booleans, inside the volume.
        inside: (B, 1, X, Y, Z) boolean inside seeds, which take precedence over outside seeds.
        outside: (B, 1, X, Y, Z) boolean outside seeds.
        start: (B, 1, X, Y, Z) initial guess of the probability; zero by default.
        iterations: maximum iterations of conjugate gradients.
        tolerance: relative residual at which the iteration stops.

    Returns:
        (B, 1, X, Y, Z) float32 in [0, 1]; zero without any inside seed.
    """
    weights = edge_weights(image.float(), valid)
    seeds = inside.float().flatten(1)
    unseeded = ~(inside | outside).flatten(1)
    root_degree = (_neighbours(torch.ones_like(seeds), weights) + BACKGROUND_PULL).sqrt_()
    # Scaling the unknowns by the root of the degree builds the Jacobi preconditioner into the system.
    scale = unseeded / root_degree
    b = _neighbours(seeds, weights) * scale
    for step, weight in weights:
        weight.mul_(scale[:, :-step]).mul_(scale[:, step:])
    target = _dot(b, b) * tolerance**2
    x = torch.zeros_like(b) if start is None else start.flatten(1) * root_degree * unseeded
    r = b - x + _neighbours(x, weights)
    p = r.clone()
    rr = _dot(r, r)
    # A sample that has converged no longer changes, so its result does not depend on the rest of the batch.
    active = torch.ones_like(rr)
    for count in range(iterations):
        ap = p - _neighbours(p, weights)
        alpha = active * rr / _dot(p, ap).clamp_min(1e-30)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, ap, value=-1)
        rr_new = _dot(r, r)
        if count % 10 == 9:
            active = (rr_new > target).to(rr)
            if not active.any():
                break
        p.mul_(rr_new / rr.clamp_min(1e-30)).add_(r)
        rr = rr_new
    probability = (x * scale).view_as(inside)
    return torch.where(inside, 1.0, torch.where(outside, 0.0, probability)).clamp_(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of each sample: (B, 1)."""
    return torch.linalg.vecdot(a, b)[:, None]
