"""The small 3D SAM: properties that hold for any weights."""

from __future__ import annotations

import pytest
import torch

from medsam_app.errors import ModelError
from medsam_app.models import load, table
from medsam_app.models.encoder import normalise
from medsam_app.models.layers import Conv3d, SpatialAdapter, depth_to_space
from medsam_app.models.prompt_encoder import sample_at
from medsam_app.models.sam3d import RoiPrompts, Sam3D, build_sam3d_tiny


@pytest.fixture(scope="module")
def model() -> Sam3D:
    torch.manual_seed(0)
    return build_sam3d_tiny().eval().requires_grad_(False)


def _ball(n: int, radius: float = 0.5) -> torch.Tensor:
    line = torch.linspace(-1, 1, n)
    distance = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).norm(dim=0)
    return (distance < radius)[None, None]


def _click(*voxels: tuple[float, float, float], labels: list[int] | None = None) -> RoiPrompts:
    return RoiPrompts(torch.tensor([voxels]), torch.tensor([labels or [1] * len(voxels)]))


def test_normalise_is_blind_to_scale_and_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 16, 16, 16, generator=generator)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[..., 12:] = False
    one, other = normalise(image, valid), normalise(image * 1500 - 1000, valid)
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
    assert one.amin() == -1
    assert one.amax() <= 1
    assert (one[..., 12:] == -1).all()


def test_normalise_bears_constant_and_empty_windows() -> None:
    image = torch.full((2, 1, 8, 8, 8), 7.0)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[1] = False
    assert torch.isfinite(normalise(image, valid)).all()


def test_fresh_spatial_adapter_changes_nothing() -> None:
    tokens = torch.randn(2, 60, 16)
    assert torch.equal(SpatialAdapter(16, 4)(tokens, (3, 4, 5)), tokens)


def test_depth_to_space_is_the_inverse_of_folding() -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    folded = x.reshape(2, 3, 2, 2, 3, 2, 4, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(2, 24, 2, 3, 4)
    assert torch.equal(depth_to_space(folded), x)


def test_sampling_at_voxel_centres_reads_the_voxel() -> None:
    x = torch.randn(1, 2, 5, 6, 7)
    coords = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 0.0, 6.0]]])
    torch.testing.assert_close(sample_at(x, coords)[0, 0], x[0, :, 1, 2, 3])
    torch.testing.assert_close(sample_at(x, coords)[0, 1], x[0, :, 4, 0, 6])


@pytest.mark.parametrize("stride", [1, 2])
def test_own_convolution_gives_what_torch_gives(stride: int) -> None:
    torch.manual_seed(0)
    layer = Conv3d(64, 32, 3, stride=stride, padding=1)
    x = torch.randn(1, 64, 8, 10, 12)
    expected = torch.nn.functional.conv3d(x, layer.weight, layer.bias, stride=stride, padding=1)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(x), expected)  # with gradients, torch's own


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 32, 64)])
def test_any_window_whose_sides_are_multiples_of_16(model: Sam3D, shape: tuple[int, int, int]) -> None:
    image = torch.randn(1, 1, *shape)
    embedding = model.encode_image(image, torch.ones_like(image, dtype=torch.bool))
    result = model.decode(embedding, _click((10.0, 10.0, 10.0)))
    assert result.logits.shape == (1, 3, *shape)
    assert torch.isfinite(result.logits).all()
    assert ((result.quality >= 0) & (result.quality <= 1)).all()


def test_prompts_do_not_reach_the_embedding_and_decoding_repeats(model: Sam3D) -> None:
    image = _ball(32).float() + 0.05 * torch.randn(1, 1, 32, 32, 32)
    embedding = model.encode_image(image, torch.ones_like(image, dtype=torch.bool))
    before = [t.clone() for t in embedding.tensors]
    first = model.decode(embedding, _click((16.0, 16.0, 16.0))).logits
    model.decode(embedding, _click((2.0, 2.0, 2.0), labels=[0]))
    again = model.decode(embedding, _click((16.0, 16.0, 16.0))).logits
    assert all(torch.equal(a, b) for a, b in zip(before, embedding.tensors, strict=True))
    assert torch.equal(first, again)


def test_clicks_vie_for_the_voxels_between_them(model: Sam3D) -> None:
    """The nearer and more similar click wins; clicks of one kind have no contest."""
    image = torch.zeros(1, 1, 32, 32, 32)
    image[..., 16:] = 100.0  # two adjacent tissues
    embedding = model.encode_image(image, torch.ones_like(image, dtype=torch.bool))
    contest = model.decoder.prompt_encoder.contest
    both = contest(embedding, _click((8, 16, 13), (8, 16, 18), labels=[1, 0]))[0, 0]
    assert both.shape == (32, 32, 32) and both.abs().max() <= 1
    assert both[8, 16, 13] > 0.6 and both[8, 16, 18] < -0.6
    assert both[8, 16, 15] > 0.5 and both[8, 16, 16] < -0.5  # the edge, not the middle between the clicks
    assert both[31].abs().max() < 0.05
    assert not contest(embedding, _click((8, 16, 13), (8, 16, 18), labels=[1, 1])).any()
    padded = contest(embedding, _click((8, 16, 13), (8, 16, 18), (1, 1, 1), labels=[1, 0, -1]))[0, 0]
    assert torch.equal(both, padded)


def test_padding_prompts_change_nothing(model: Sam3D) -> None:
    image = _ball(32).float()
    embedding = model.encode_image(image, torch.ones_like(image, dtype=torch.bool))
    plain = model.decode(embedding, _click((16.0, 16.0, 16.0))).logits
    padded = model.decode(embedding, _click((16.0, 16.0, 16.0), (0.0, 0.0, 0.0), labels=[1, -1])).logits
    torch.testing.assert_close(plain, padded, atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_part_that_is_used() -> None:
    torch.manual_seed(0)
    model = build_sam3d_tiny()
    image = torch.randn(1, 1, 32, 32, 32)
    embedding = model.encode_image(image, torch.ones_like(image, dtype=torch.bool))
    prompts = _click((16.0, 16.0, 16.0))
    prompts.boxes = torch.tensor([[[8.0, 8.0, 8.0], [24.0, 24.0, 24.0]]])
    result = model.decode(embedding, prompts)
    (result.logits.square().mean() + result.quality.sum()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == []


def test_embedded_weights_segment_a_ball() -> None:
    model = load.load_model("sam3d_tiny")
    truth = _ball(64, 0.4)
    generator = torch.Generator().manual_seed(0)
    image = truth.float() * 100 + 10 * torch.randn(truth.shape, generator=generator)
    with torch.inference_mode():
        embedding = model.encode_image(image, torch.ones_like(truth))
        logits, _ = model.decode(embedding, _click((31.0, 31.0, 31.0))).best()
    mask = logits > 0
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.85


def test_damaged_weights_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = bytearray((table.WEIGHTS_FOLDER / "sam3d_tiny.safetensors").read_bytes())
    bad[-1] ^= 1
    (tmp_path / "sam3d_tiny.safetensors").write_bytes(bad)
    monkeypatch.setattr(table, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(ModelError, match="sha256"):
        load.load_model("sam3d_tiny")


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'sam3d_tiny'"):
        load.load_model("sam3d_tini")
