"""The published 3DSAM-adapter: parity with the published code, and sharing between clicks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import straightforward
from medsam_app.models.published import PublishedNetwork, published_state

ROOT = Path(__file__).resolve().parents[2]
VIT_B = {"dim": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)}


@pytest.fixture(scope="module")
def golden() -> Path:
    """Return outputs of the published code, with the recipe of its weights and input."""
    folder = ROOT.parent / "shared" / "golden" / "3dsam_adapter"
    if not (folder / "reference_outputs.npz").is_file():
        pytest.skip(f"no outputs of the published code here: {folder} is absent")
    return folder


def _checkpoint(folder: Path) -> tuple[dict, torch.Tensor]:
    """Return a checkpoint in the published layout and the input volume, both from the golden recipe."""
    spec = importlib.util.spec_from_file_location("golden_case", folder / "golden_case.py")
    assert spec is not None and spec.loader is not None
    case = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(case)

    def entries() -> Iterator[tuple[str, torch.Tensor]]:
        for line in (folder / "state_dict_keys.tsv").read_text().splitlines():
            name, sides, _ = line.split("\t")
            shape = () if sides == "scalar" else tuple(int(n) for n in sides.split("x"))
            yield name, torch.zeros(shape) if name.endswith("attn_mask") else case.golden_tensor(name, shape)

    result: dict = {"encoder_dict": {}, "decoder_dict": {}, "feature_dict": [{}, {}, {}, {}]}
    for name, value in entries():
        part, key = name.split(".", 1)
        if part == "feature_dict":
            number, key = key.split(".", 1)
            result[part][int(number)][key] = value
        else:
            result[part][key] = value
    return result, case.golden_volume()


@pytest.mark.slow
def test_published_network_gives_the_published_numbers(golden: Path) -> None:
    reference = np.load(golden / "reference_outputs.npz")
    checkpoint, volume = _checkpoint(golden)
    network = PublishedNetwork(**VIT_B)
    network.load_state_dict(published_state(checkpoint), strict=True, assign=True)
    network.eval().requires_grad_(False)
    del checkpoint
    # The published axes are (D, H, W) for volumes and (d, w, h) for points; ours are (H, W, D) and (h, w, d).
    points = torch.from_numpy(reference["points"]).float().flip(-1)
    with torch.inference_mode():
        volume = volume.permute(0, 1, 3, 4, 2).contiguous()
        features = network.encoder(volume)
        unprompted = network.decoder.unprompted(features, volume)
        prompted = network.prompt_encoder(features[3], points)
        logits = network.decoder(unprompted, prompted).permute(0, 1, 4, 2, 3)
    thin = (slice(None), slice(None, None, 16), *[slice(None, None, 4)] * 3)
    result = {f"features_{n}": feature[thin] for n, feature in enumerate(features)}
    result |= {"prompted": prompted[thin], "masks": logits[:, :, ::8, ::8, ::8]}
    for name, value in result.items():
        expected = torch.from_numpy(reference[name])
        assert value.shape == expected.shape
        assert float((value - expected).abs().max() / expected.abs().max()) < 1e-3, name


@pytest.fixture(scope="module")
def small() -> PublishedNetwork:
    """Return a small network of the published structure, with all tensors away from their initial values."""
    torch.manual_seed(0)
    network = PublishedNetwork(dim=32, depth=4, heads=2, global_blocks=(1, 3))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(32, 32, 32), (32, 32, 96)])
def test_nothing_changes_by_folding_and_sharing(small: PublishedNetwork, sides: tuple[int, int, int]) -> None:
    volume = torch.randn(1, 1, *sides)
    points = torch.tensor([[[5.0, 20.0, 9.0], [30.0, 3.0, 17.0]]])
    with torch.no_grad():
        expected = straightforward.features(small, volume)
        result = small.encoder(volume)
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
        logits = small.decode(result[3], small.decoder.unprompted(result, volume), points)
        torch.testing.assert_close(
            logits, straightforward.decode(small, expected, volume, points), atol=1e-3, rtol=1e-3
        )
        assert logits.shape == (1, 2, *sides)


@pytest.mark.slow
def test_gradients_are_those_of_the_formula(small: PublishedNetwork) -> None:
    volume = torch.randn(1, 1, 64, 32, 32)
    torch.manual_seed(1)
    weights = [torch.randn_like(f) for f in small.encoder(volume)]
    gradients = []
    for encode in (small.encoder, lambda v: straightforward.features(small, v)):
        small.encoder.train()  # activations are recomputed here, and must be the same
        loss = sum((f * w).sum() for f, w in zip(encode(volume), weights, strict=True))
        gradients.append(torch.autograd.grad(loss, list(small.encoder.parameters())))
        small.encoder.eval()
    for name, one, other in zip(dict(small.encoder.named_parameters()), *gradients, strict=True):
        assert float((one - other).abs().max() / other.abs().max().clamp_min(1e-6)) < 2e-3, name


def test_windows_do_not_see_past_the_end_of_the_volume(small: PublishedNetwork) -> None:
    """A shifted window joins two ends of the volume; one end must not affect the other."""
    block = small.encoder.blocks[0]
    assert block.shifted
    x = torch.randn(1, 16, 8, 8, 32)
    changed = x.clone()
    changed[:, 15] = torch.randn(8, 8, 32)
    with torch.no_grad():
        adapter, block.adapter = block.adapter, None
        moved = (block(changed) - block(x)).abs().amax(dim=(0, 2, 3, 4))
        block.adapter = adapter
    assert (moved[12:] > 1e-3).all()
    assert (moved[:12] < 1e-5).all()


def test_encoding_is_the_same_whether_gradients_are_needed_or_not(small: PublishedNetwork) -> None:
    tokens = torch.randn(2, 16, 8, 24, 32)
    for block in small.encoder.blocks[:2]:  # with shifted windows and without
        with torch.no_grad():
            result = block(tokens)
        torch.testing.assert_close(result, block(tokens).detach(), atol=1e-5, rtol=1e-5)
