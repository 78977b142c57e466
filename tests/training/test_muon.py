"""Muon: orthogonal steps, and the choice of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.training.muon import Muon, matrices, orthogonalised


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalised_keeps_directions_and_evens_out_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    after = u.T @ orthogonalised(matrix) @ v.T
    lengths = after.diagonal()
    assert values.max() / values.min() > 1.7
    assert ((lengths > 0.6) & (lengths < 1.3)).all()
    assert (after - torch.diag(lengths)).abs().max() < 1e-4


def test_a_step_has_the_size_of_one_of_adamw() -> None:
    parameter = nn.Parameter(torch.zeros(24, 8, 3, 3, 3).to(memory_format=torch.channels_last_3d))
    parameter.grad = torch.randn(24, 8, 3, 3, 3)
    Muon([parameter], lr=0.1).step()
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.2)


def test_the_loss_decreases() -> None:
    torch.manual_seed(0)
    target, layer = torch.randn(8, 12), nn.Linear(12, 8, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.15)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer.weight - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_embeddings_norms_and_depthwise_kernels_are_excluded() -> None:
    model = build_sam3d_tiny()
    taken = {id(parameter) for parameter in matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in taken}
    assert {"encoder.stem.0.weight", "encoder.blocks.0.mlp.0.weight", "decoder.up_full.weight"} <= names
    assert not any(
        part in name for name in names for part in ("bias", "kinds", "mask_tokens", "adapter.conv")
    )
    assert "decoder.prior.weight" not in names
