"""LiteMedSAM's image encoder: the written-out formula, folded norms, and images of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.slices.tiny_vit import (
    ConvNorm,
    TinyVit,
    TinyVitSizes,
    WindowAttention,
    fold_norms,
)

SMALL = TinyVitSizes(dims=(32, 32, 64, 96), depths=(1, 1, 2, 1), windows=(3, 3, 5, 3), expansion=2, out=16)


def small_encoder() -> TinyVit:
    """Return a small encoder for which norms, biases and positions have an effect."""
    torch.manual_seed(0)
    encoder = TinyVit(SMALL)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
        if isinstance(module, WindowAttention):
            nn.init.normal_(module.attention_biases)
    return encoder.eval()


def image(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(3, 3), (3, 6), (4, 2)])
def test_attention_as_the_formula_says(size: tuple[int, int]) -> None:
    """Each window, token by token: softmax(q.k / sqrt(d) + bias of the distance) over zero-padded tokens."""
    attention = next(module for module in small_encoder().modules() if isinstance(module, WindowAttention))
    side, heads = attention.window, attention.heads
    x = torch.randn(1, *size, 32, generator=torch.Generator().manual_seed(2))
    rows, columns = (-n % side for n in size)
    padded = F.pad(x, (0, 0, 0, columns, 0, rows))[0]
    expected = torch.zeros_like(padded)
    for top in range(0, padded.shape[0], side):
        for left in range(0, padded.shape[1], side):
            window = padded[top : top + side, left : left + side].flatten(0, 1)
            q, k, v = attention.qkv(attention.norm(window)).view(-1, heads, 3, 32).permute(2, 1, 0, 3)
            score = q @ k.mT / 32**0.5
            for one in range(side * side):
                for other in range(side * side):
                    apart = [abs(f(one, side) - f(other, side)) for f in (int.__floordiv__, int.__mod__)]
                    score[:, one, other] += attention.attention_biases[:, apart[0] * side + apart[1]]
            mixed = attention.proj((score.softmax(-1) @ v).transpose(0, 1).flatten(1))
            expected[top : top + side, left : left + side] = mixed.view(side, side, -1)
    torch.testing.assert_close(attention(x)[0], expected[: size[0], : size[1]], atol=1e-5, rtol=1e-5)


def test_folded_norms_give_the_same() -> None:
    encoder = small_encoder()
    before = encoder(image(36, 20))
    folded = fold_norms(copy.deepcopy(encoder))
    assert not any(isinstance(module, ConvNorm | nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, ConvNorm) for module in encoder.modules()) > 10
    torch.testing.assert_close(folded(image(36, 20)), before, atol=1e-5, rtol=1e-5)
    assert before.std() > 0.1


@pytest.mark.parametrize("prepare", [lambda encoder: encoder, fold_norms], ids=["norms", "folded"])
def test_predicted_in_parts_it_is_the_same(prepare: Callable[[nn.Module], nn.Module]) -> None:
    """Without gradients, a CPU computes some rows and tokens at a time."""
    encoder, x = prepare(small_encoder()), image(100, 68).repeat(2, 1, 1, 1)
    whole = encoder(x)
    with torch.no_grad():
        in_parts = encoder(x)
    assert whole.requires_grad and not in_parts.requires_grad
    torch.testing.assert_close(in_parts, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (64, 20), (4, 4), (100, 128)])
def test_sizes_of_the_stages(size: tuple[int, int]) -> None:
    height, width = size
    encoder = small_encoder()
    stages = encoder.stages(image(height, width))
    strides = (1, 2, 4, 4)
    expected = [
        (1, dim, height // stride, width // stride) for dim, stride in zip(SMALL.dims, strides, strict=True)
    ]
    assert [tuple(stage.shape) for stage in stages] == expected
    assert encoder(image(height, width)).shape == (1, 16, height // 4, width // 4)


def test_positions_count_from_the_corner() -> None:
    """Padding of whole windows, without content, changes the map only near the seam."""
    encoder = small_encoder()
    reach = 4 * 15  # the larger window, in pixels, and what the convolutions see
    x = image(120, 120)
    alone, beside = encoder(x), encoder(F.pad(x, (0, 60)))
    same = slice(0, (120 - reach) // 4)
    torch.testing.assert_close(alone[..., same], beside[..., same], atol=1e-5, rtol=1e-5)
    assert (alone[..., -1] - beside[..., 29]).abs().max() > 1e-3


def test_a_batch_is_its_images() -> None:
    encoder = small_encoder()
    both = torch.cat([image(24, 16), image(24, 16).flip(-1)])
    together = encoder(both)
    for n in range(2):
        torch.testing.assert_close(together[n : n + 1], encoder(both[n : n + 1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(30, 32), (32, 31), (0, 4)])
def test_other_sides_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels.*multiples of 4"):
        small_encoder()(torch.zeros(1, 3, *size))


def test_gradients_reach_every_weight() -> None:
    encoder = small_encoder().train()
    encoder(torch.cat([image(20, 24), image(20, 24) * 2])).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
