"""SAM-Med2D: its adapter layer, compared with its authors' code, and the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam_app.models.slices.sam2d import build_slice_model
from medsam_app.models.slices.sam_med2d import AdapterLayer
from medsam_app.models.slices.slice_input import MEAN, STD, stretch_nearest


def known_layer() -> tuple[AdapterLayer, torch.Tensor]:
    """Return an adapter layer and tokens of known values. `Adapter_Layer(8)` of SAM-Med2D's repository
    (segment_anything/modeling/image_encoder.py), filled in the same way, gave the numbers below."""
    layer = AdapterLayer(8)
    with torch.no_grad():
        for n, (_, parameter) in enumerate(sorted(layer.named_parameters())):
            values = torch.sin(torch.arange(parameter.numel()) * 0.7 + n) * 0.5
            parameter.copy_(values.view(parameter.shape))
    return layer, torch.cos(torch.arange(2 * 4 * 6 * 8) * 0.3).view(2, 4, 6, 8)


def test_adapter_layer_gives_the_published_numbers() -> None:
    layer, tokens = known_layer()
    names = ["channel.0.weight", "channel.2.weight", "norm.bias", "norm.weight"]
    assert sorted(layer.state_dict()) == [*names, "spatial.0.weight", "spatial.2.weight"]
    with torch.no_grad():
        out = layer(tokens)
    assert out.double().sum().item() == pytest.approx(-24.486314274, abs=1e-4)
    assert out.abs().mean().item() == pytest.approx(0.4297083914, abs=1e-6)
    expected = [0.5366474, -0.2910230, 0.1679763, -0.6565660, -0.5107471, 0.4738426, -0.3073276, -0.9202991]
    assert out.flatten()[::37][:8].tolist() == pytest.approx(expected, abs=1e-6)


def test_published_size_has_the_published_keys() -> None:
    with torch.device("meta"):
        state = build_slice_model("sam_med2d").state_dict()
    assert state["image_encoder.pos_embed"].shape == (1, 16, 16, 768)
    assert state["image_encoder.blocks.2.attn.rel_pos_h"].shape == (31, 64)
    shapes = {
        "channel.0.weight": (192, 768),
        "channel.2.weight": (768, 192),
        "norm.bias": (768,),
        "norm.weight": (768,),
        "spatial.0.weight": (768, 768, 3, 3),
        "spatial.2.weight": (768, 768, 4, 4),
    }
    for n in range(12):
        prefix = f"image_encoder.blocks.{n}.Adapter."
        own = {
            key.removeprefix(prefix): tuple(value.shape)
            for key, value in state.items()
            if key.startswith(prefix)
        }
        assert own == shapes


def test_a_slice_is_stretched_pixel_by_pixel() -> None:
    shown = np.linspace(0, 1, 6 * 10, dtype=np.float32).reshape(6, 10)
    square, fitted = stretch_nearest(shown, 4)
    assert fitted == (4, 4)
    grey = np.rint(shown * 255)[[0, 1, 3, 4]][:, [0, 2, 5, 7]]  # every 1.5th row, every 2.5th column
    for channel in range(3):
        expected = (grey - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(square[0, channel].numpy(), expected, rtol=1e-5)
