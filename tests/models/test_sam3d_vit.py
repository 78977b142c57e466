"""SAM's ViT in 3D: official checkpoints, windows of other shapes, prompts, precision, memory in training."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from medsam_app.models.layers import depth_to_space
from medsam_app.models.load import prepare
from medsam_app.models.prompt_encoder import RoiPrompts
from medsam_app.models.published import PublishedEncoder
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.sam3d_published import build_published
from medsam_app.models.sam3d_vit import (
    VIT_SHAPES,
    VitShape,
    build_sam3d_vit,
    convert_to_3d,
    halve_prompts,
    space_to_depth,
)
from medsam_app.models.vit3d import Vit3d

SMALL = VitShape(48, 4, 3, (1, 3))


def _sam_encoder(shape: VitShape) -> ImageEncoderViT:
    """Return the image encoder of segment-anything, as its builder constructs it."""
    return ImageEncoderViT(
        depth=shape.depth,
        embed_dim=shape.dim,
        img_size=1024,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=shape.heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=shape.global_blocks,
        window_size=14,
        out_chans=256,
    )


@pytest.fixture(scope="module")
def model() -> Sam3D:
    built = build_sam3d_vit(SMALL, roi_shape=(64, 64, 64))
    return prepare(built, name="small", sha256="", device=torch.device("cpu"))


def _ball(shape: tuple[int, int, int], radius: float = 0.4) -> torch.Tensor:
    lines = [torch.linspace(-1, 1, n) * n / min(shape) for n in shape]
    return (torch.stack(torch.meshgrid(*lines, indexing="ij")).norm(dim=0) < radius)[None, None]


def _image(truth: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return truth.float() * 100 + 10 * torch.randn(truth.shape, generator=generator)


def _dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("arch", ["vit_b", "vit_l", "vit_h"])
def test_every_entry_of_an_official_encoder_is_taken(arch: str) -> None:
    shape = VIT_SHAPES[arch]
    with torch.device("meta"):
        official = {f"image_encoder.{k}": v for k, v in _sam_encoder(shape).state_dict().items()}
        vit = Vit3d(
            dim=shape.dim, depth=shape.depth, heads=shape.heads, global_blocks=shape.global_blocks
        ).state_dict()
    carried = convert_to_3d(official)
    assert {key: value.shape for key, value in carried.items()} == {
        key: vit[key].shape for key in carried if key in vit
    }
    own = {"depth_embed", "slice_embed.weight", "slice_embed.bias"}
    own |= {f"blocks.{n}.attn.lr" for n in range(shape.depth)}
    assert set(vit) - set(carried) == own


def test_tokens_of_a_volume_of_equal_slices_are_those_of_sam() -> None:
    """In a volume that is constant along depth, each token is SAM's token of the slice."""
    torch.manual_seed(0)
    sam = _sam_encoder(SMALL)
    nn.init.normal_(sam.pos_embed)
    vit = Vit3d(dim=48, depth=4, heads=3, global_blocks=(1, 3))
    vit.load_state_dict(
        convert_to_3d({f"image_encoder.{k}": v for k, v in sam.state_dict().items()}), strict=False
    )
    picture = torch.randn(1, 1, 256, 256)
    with torch.no_grad():
        big = nn.functional.interpolate(picture, scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1)
        expected = sam.patch_embed(big) + sam.pos_embed
        result = vit.embed(picture[..., None].expand(-1, -1, -1, -1, 32))
    torch.testing.assert_close(
        result, expected[:, :, :, None].expand(-1, -1, -1, 8, -1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("shape", [(64, 96, 128), (64, 64, 64)])
def test_windows_of_other_shapes_give_masks_on_their_axes(model: Sam3D, shape: tuple[int, int, int]) -> None:
    truth = _ball(shape)
    middle = tuple((n - 1) / 2 for n in shape)
    prompts = RoiPrompts(torch.tensor([[middle]]), torch.tensor([[1]]))
    with torch.inference_mode():
        embedding = model.encode_image(_image(truth), torch.ones_like(truth))
        logits, quality = model.decode(embedding, prompts).best()
    assert logits.shape == (1, 1, *shape)
    assert _dice(logits > 0, truth) > 0.75
    assert 0 <= float(quality) <= 1


def test_every_kind_of_prompt_changes_the_mask(model: Sam3D) -> None:
    truth = _ball((64, 64, 64))
    click = RoiPrompts(torch.tensor([[[31.0, 31.0, 31.0]]]), torch.tensor([[1]]))
    two = RoiPrompts(torch.tensor([[[31.0, 31.0, 31.0], [31.0, 40.0, 31.0]]]), torch.tensor([[1, 0]]))
    box = RoiPrompts(
        torch.zeros(1, 0, 3),
        torch.zeros(1, 0, dtype=torch.long),
        boxes=torch.tensor([[[19.0] * 3, [44.0] * 3]]),
    )
    mask = RoiPrompts(click.coords, click.labels, mask=_ball((64, 64, 64), 0.2).float())
    with torch.inference_mode():
        embedding = model.encode_image(_image(truth), torch.ones_like(truth))
        result = [model.decode(embedding, p).best()[0] for p in (click, two, box, mask)]
    assert _dice(result[0] > 0, truth) > 0.75 and _dice(result[2] > 0, truth) > 0.5
    assert result[1][0, 0, 31, 40, 31] < result[0][0, 0, 31, 40, 31] - 1
    assert not torch.equal(result[3], result[0])


def test_prompts_at_half_resolution_lie_where_they_did() -> None:
    seeds = torch.zeros(1, 1, 4, 4, 4, dtype=torch.int8)
    seeds[..., :2, :2, :2] = 1
    seeds[..., 2:, 2:, 2:] = -1
    seeds[..., 3, 3, 3] = 0
    small = halve_prompts(
        RoiPrompts(
            torch.tensor([[[0.5, 2.5, 3.0]]]),
            torch.tensor([[1]]),
            boxes=torch.tensor([[[-0.5, -0.5, -0.5], [3.5, 3.5, 3.5]]]),
            mask=torch.ones(1, 1, 4, 4, 4),
            seeds=seeds,
        )
    )
    assert small.coords.tolist() == [[[0.0, 1.0, 1.25]]]
    assert small.boxes is not None and small.boxes.tolist() == [[[-0.5] * 3, [1.5] * 3]]
    assert small.mask is not None and small.mask.shape == (1, 1, 2, 2, 2) and bool((small.mask == 1).all())
    assert small.seeds is not None and small.seeds.flatten().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_space_to_depth_is_the_inverse_of_depth_to_space() -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(depth_to_space(space_to_depth(x)), x)


def test_as_many_parameters_as_the_paper_has() -> None:
    """The published encoder has 104.1 M, and 15.2 M are trained; `sam3d_vit_b` trains the same tensors."""
    shape = VIT_SHAPES["vit_b"]
    with torch.device("meta"):
        encoder = PublishedEncoder(
            dim=shape.dim, depth=shape.depth, heads=shape.heads, global_blocks=shape.global_blocks
        )
        model = build_sam3d_vit(shape)
    trained = ("adapter", "norm1", "norm2", "depth_embed", "slice_embed", "rel_pos_d", "neck_3d")
    counts = {name: p.numel() for name, p in encoder.named_parameters()}
    assert round(sum(counts.values()) / 1e6, 1) == 104.1
    published = {n: c for n, c in counts.items() if any(part in n for part in trained)}
    assert round(sum(published.values()) / 1e6, 1) == 15.2
    own = {n.removeprefix("encoder.vit.") for n, _ in model.named_parameters() if n.startswith(model.taught)}
    assert {n for n in published if "adapter" not in n and "neck" not in n} <= own
    assert not {n for n in own if n.startswith(("blocks", "pos_embed", "patch_embed"))} - set(published)


def test_fresh_weights_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    one = build_sam3d_vit(SMALL).state_dict()
    torch.manual_seed(2)
    other = build_sam3d_vit(SMALL).state_dict()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_activations_worked_out_again_give_the_same_gradients() -> None:
    truth = _ball((32, 32, 32))
    image = _image(truth)
    prompts = RoiPrompts(torch.tensor([[[16.0, 16.0, 16.0]]]), torch.tensor([[1]]))
    gradients, memory = [], []
    for checkpointing in (False, True):
        built = build_sam3d_vit(SMALL).train()
        built.encoder.vit.checkpointing = checkpointing
        bytes_held = 0

        def keep(t: torch.Tensor) -> torch.Tensor:
            nonlocal bytes_held
            bytes_held += t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            embedding = built.encode_image(image, torch.ones_like(truth))
        built.decode(embedding, prompts).logits.square().mean().backward()
        gradients.append([p.grad for p in built.encoder.vit.blocks.parameters()])
        memory.append(bytes_held)
    assert all(g is not None for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert memory[1] < memory[0] / 2


@pytest.mark.slow
def test_bfloat16_gives_the_mask_of_float32() -> None:
    truth = _ball((64, 64, 64))
    click = RoiPrompts(torch.tensor([[[31.0, 31.0, 31.0]]]), torch.tensor([[1]]))
    built = prepare(build_sam3d_vit(SMALL), name="small", sha256="", device=torch.device("cpu"))
    masks, embeddings = [], []
    for dtype in (None, torch.bfloat16):
        built.amp_dtype = dtype
        with torch.inference_mode():
            embedding = built.encode_image(_image(truth), torch.ones_like(truth))
            masks.append(built.decode(embedding, click).best()[0] > 0)
            embeddings.append(embedding.coarse.float())
    assert not torch.equal(*embeddings)
    assert _dice(*masks) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, (-100.0, 200.0, 20.0, 50.0)])
def test_published_model_takes_the_prompts_of_the_others(window) -> None:
    published = build_published(SMALL, window=window).eval()
    truth = _ball((64, 32, 32))
    image, valid = _image(truth), torch.ones_like(truth)
    at = torch.tensor([[[40.0, 10.0, 20.0]]])
    click = RoiPrompts(at, torch.tensor([[1]]))
    box = RoiPrompts(
        torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long), boxes=torch.cat([at - 4, at + 4], dim=1)
    )
    nothing = RoiPrompts(torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long), mask=truth.float())
    with torch.inference_mode():
        embedding = published.encode_image(image, valid)
        result = published.decode(embedding, click)
        assert result.logits.shape == (1, 1, 64, 32, 32)
        assert torch.equal(result.logits, published.decode(embedding, box).logits)
        assert not torch.equal(result.logits, published.decode(embedding, nothing).logits)
        # The network's own axes are (H, W, D) = (y, x, z).
        if window is not None:
            scaled = ((image.clamp(-100, 200) - 20) / 50).transpose(2, 3)
            features = published.encoder(scaled)
            prompted = published.prompt_encoder(features[3], torch.tensor([[[10.0, 40.0, 20.0]]]))
            logits = published.decoder(published.decoder.unprompted(features, scaled), prompted)
            difference = (logits[:, 1:] - logits[:, :1]).transpose(2, 3)
            torch.testing.assert_close(result.logits, difference, atol=1e-4, rtol=1e-4)
    assert 0 <= float(result.quality) <= 1
    assert embedding.nbytes > 0
