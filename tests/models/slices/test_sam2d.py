"""2D models: parity with the package they are built from, and segmentation with its weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medsam_app.errors import ModelError
from medsam_app.io.volume import Volume
from medsam_app.models.slices.sam2d import (
    ARCHITECTURES,
    VARIANTS,
    SliceModel,
    SliceSegmenter,
    build_slice_model,
    build_slice_sam,
    stability,
)
from medsam_app.models.slices.sam_attention import (
    SamBlock,
    attend_concatenated,
    attend_in_strips,
    relative_positions,
)
from medsam_app.models.slices.sam_package import SamSizes, sam_parts
from medsam_app.models.slices.slice_input import fit_longest_side
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.slicewise.propagation import Propagation
from medsam_app.prompts.types import Box, Point
from medsam_app.session.session import Session

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("no_gradients")

#: Sizes of a small SAM: 24 x 24 tokens, so that windows of 14 are padded.
SIZES = SamSizes(
    embed_dim=32, depth=4, heads=2, global_attn_indexes=(1, 3), patch_size=4, prompt_dim=32,
    decoder_heads=4, decoder_mlp_dim=64,
)  # fmt: skip
SIDE = 96


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def randomise(model: nn.Module) -> None:
    """Return weights for which positions have an effect, and masks are neither empty nor full."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
        elif "output_hypernetworks" in name and name.endswith("layers.2.weight"):
            nn.init.normal_(parameter, std=3.0)


def tiny(variant: str = "sam") -> SliceModel:
    model = build_slice_sam(replace(VARIANTS[variant], img_size=SIDE), SIZES)
    randomise(model)
    return model


def picture(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return (H, W) smooth random grey values."""
    coarse = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, shape, mode="bicubic")[0, 0].clamp(0, 1) * 255).numpy().astype(np.uint8)


@pytest.mark.parametrize("shape", [(70, 53), (96, 96), (50, 150)])
def test_the_same_as_the_package(shape: tuple[int, int]) -> None:
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    torch.manual_seed(0)
    sam = Sam(*sam_parts(SIDE, SIZES)).eval()
    randomise(sam)
    model = build_slice_sam(replace(VARIANTS["sam"], img_size=SIDE), SIZES)
    model.load_state_dict(sam.state_dict())
    theirs = SamPredictor(sam)
    grey = picture(shape)
    theirs.set_image(np.repeat(grey[..., None], 3, axis=2))
    # Raw intensities, which the window converts to the same grey values.
    embedding = model.encode_slice(grey.astype(np.int16) * 3 - 1000, window=(-1000, -1000 + 3 * 255))
    torch.testing.assert_close(embedding.features, theirs.features, atol=1e-5, rtol=1e-5)

    points, labels = np.array([[30.0, 20.0], [8.0, 41.0], [44.0, 12.5]]), np.array([1, 1, 0])  # (row, column)
    box, rough = np.array([4.0, 6.0, 44.0, 40.0]), torch.randn(SIDE, SIDE) * 5
    prompt_sets: list[dict[str, Any]] = [
        {"points": points[:1], "labels": labels[:1]},
        {"points": points, "labels": labels},
        {"box": box},
        {"points": points, "labels": labels, "box": box, "mask": rough},
        {"mask": rough},
    ]
    for prompts in prompt_sets:
        ours = model.decode_slice(embedding, **prompts)
        kept = {
            "point_coords": points[: len(prompts["points"]), ::-1] if "points" in prompts else None,
            "point_labels": prompts.get("labels"),
            "box": box[[1, 0, 3, 2]] if "box" in prompts else None,
            "mask_input": rough[None].numpy() if "mask" in prompts else None,
            "multimask_output": len(ours.quality) > 1,
        }
        logits, quality, low_res = theirs.predict(**kept, return_logits=True)
        assert 0.02 < (logits > 0).mean() < 0.98
        np.testing.assert_allclose(ours.logits.numpy(), logits, atol=1e-4)
        np.testing.assert_allclose(ours.low_res.numpy(), low_res, atol=1e-4)
        np.testing.assert_allclose(ours.quality.numpy(), quality, atol=1e-4)
        sure = np.abs(logits) > 1e-4
        assert np.array_equal((ours.logits.numpy() > 0)[sure], (logits > 0)[sure])
    assert len(model.decode_slice(embedding, **prompt_sets[0]).quality) == 3  # a single click is ambiguous


def test_medsam_by_its_published_steps() -> None:
    model, grey = tiny("medsam"), picture((64, 80))
    embedding = model.encode_slice(grey, window=(0.0, 255.0))
    # Stretched to the square, rescaled to [0, 1], box in pixels of the square, one mask, no other prompt.
    square = F.interpolate(
        torch.from_numpy(grey)[None, None] / 255.0, (SIDE, SIDE), mode="bicubic", antialias=True
    ).clamp(0, 1)
    square = (square - square.min()) / (square.max() - square.min())
    features = model.image_encoder(square.expand(-1, 3, -1, -1))
    torch.testing.assert_close(embedding.features, features, atol=1e-5, rtol=1e-5)
    box = torch.tensor([[10 / 80, 6 / 64, 60 / 80, 50 / 64]]) * SIDE
    sparse, dense = model.prompt_encoder(points=None, boxes=box, masks=None)
    low_res, _ = model.mask_decoder(
        image_embeddings=features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    result = model.decode_slice(embedding, box=[6, 10, 50, 60])
    torch.testing.assert_close(result.low_res, low_res[0], atol=1e-5, rtol=1e-5)
    assert result.logits.shape == (1, 64, 80)
    torch.testing.assert_close(result.quality, stability(low_res[0]))


@pytest.mark.parametrize("window", [14, 0])
def test_a_block_is_the_packages_block(window: int) -> None:
    encoder, _, _ = sam_parts(SIDE, replace(SIZES, window_size=window))
    randomise(encoder)
    block = encoder.blocks[0]
    assert block.window_size == window
    tokens = torch.randn(2, 24, 24, 32)
    fast = SamBlock(block)
    assert sorted(fast.state_dict()) == sorted(block.state_dict())
    torch.testing.assert_close(fast(tokens), block(tokens), atol=2e-5, rtol=1e-5)


def _attention(n: int, dtype: torch.dtype, *, loud: float) -> tuple[torch.Tensor, ...]:
    """Return queries, keys, values and both parts of the bias of n x n tokens."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n * n, 16, dtype=torch.float32) for _ in range(3))
    tables = (torch.randn(2 * n - 1, 16) * loud for _ in range(2))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    return q, k, v, *relative_positions(q, *tables, (n, n))


def _published(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
    """Compute the formula in double precision."""
    rows, columns = (x.double() for x in bias)
    scores = q.double() @ k.double().transpose(2, 3) / 4
    scores = scores + (rows[..., :, None] + columns[..., None, :]).flatten(3)
    return scores.softmax(dim=-1) @ v.double()


@pytest.mark.parametrize("n", [7, 36])  # 36 x 36 queries: more than one strip
def test_both_ways_to_attend_are_exact(n: int) -> None:
    tensors = _attention(n, torch.float32, loud=1.0)
    for attend in (attend_in_strips, attend_concatenated):
        torch.testing.assert_close(attend(*tensors).double(), _published(*tensors), atol=2e-5, rtol=1e-4)


def test_the_bias_is_as_exact_in_bfloat16_as_the_result_can_be() -> None:
    # A bias far larger than the scores: rounded to bfloat16 it would have a large error.
    tensors = _attention(7, torch.bfloat16, loud=8.0)
    exact = _published(*tensors)
    q, k, v, rows, columns = tensors
    rounded_bias = _published(q, k, v, rows.bfloat16(), columns.bfloat16())
    rounded_result = (exact.bfloat16().double() - exact).abs().mean()
    assert (rounded_bias - exact).abs().mean() > 2 * rounded_result
    for attend in (attend_in_strips, attend_concatenated):
        assert (attend(*tensors).double() - exact).abs().mean() < 2 * rounded_result


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_in_bfloat16_are_those_in_float32(variant: str) -> None:
    model, grey = tiny(variant), picture((80, 64))
    logits = []
    for dtype in (None, torch.bfloat16):
        model.amp_dtype = dtype
        embedding = model.encode_slice(grey, window=(0, 255))
        assert embedding.features.dtype == torch.float32
        logits.append(model.decode_slice(embedding, box=[10, 12, 60, 50]).logits[0])
    # The threshold with half of the slice inside, at which masks can differ most.
    a, b = (each > logits[0].median() for each in logits)
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) >= 0.99
    assert not torch.equal(logits[0], logits[1])


def test_a_mask_to_refine_lies_where_the_slice_lies() -> None:
    model = tiny()
    embedding = model.encode_slice(picture((70, 53)), window=(0, 255))
    assert embedding.fitted == (96, 73)
    rows, columns = (torch.arange(70) + 0.5) / 70, (torch.arange(53) + 0.5) / 53
    result = model.low_res(embedding, 5 * rows[:, None] + 3 * columns)
    rows, columns = (torch.arange(96) + 0.5) / 96, (torch.arange(73) + 0.5) / 73
    expected = 5 * rows[:, None] + 3 * columns
    torch.testing.assert_close(result[2:-2, 2:71], expected[2:-2, 2:71], atol=1e-3, rtol=0)
    assert (result[:, 73:] == result.min()).all()  # outside the slice


class Brightness(nn.Module):
    """Mask decoder that segments the bright pixels of the encoder's last input.

    Attributes:
        seen: all inputs of the encoder.
    """

    def __init__(self, model: SliceModel) -> None:
        super().__init__()
        self.iou_token = model.mask_decoder.iou_token
        self.seen: list[torch.Tensor] = []
        model.image_encoder.patch_embed.register_forward_pre_hook(self.see)

    def see(self, _: nn.Module, args: tuple[torch.Tensor]) -> None:
        self.seen.append(args[0])

    def forward(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        # Padding is 0, between black and white.
        return self.seen[-1].mean(dim=1, keepdim=True) - 0.1, torch.ones(1, 1)


def test_a_slice_of_oblong_pixels_is_seen_as_it_is_in_the_body() -> None:
    model = tiny()
    model.mask_decoder = Brightness(model)
    truth = np.zeros((60, 48, 12), dtype=bool)
    truth[10:35, 8:28, 3:7] = True  # 20 mm along i and k; in the coronal slice near its left and its foot
    volume = Volume.from_array(truth.astype(np.int16) * 900, np.diag([0.8, 0.8, 5.0, 1.0]))
    predictor = VolumePredictor(model)
    predictor.set_volume(volume)
    result = predictor.predict_prompts([Box(lower=(8, 15, 2), upper=(37, 15, 8))])
    assert np.array_equal(result.mask[:, 15], truth[:, 15])
    assert result.mask.shape == truth.shape
    picture = model.mask_decoder.seen[0][0, 0]  # of the key slice
    assert (picture[:, 77:] == 0).all() and (picture[:, :77] != 0).all()  # 60 mm high, 48 mm wide
    high, wide = (int((picture > 0.1).any(dim=axis).sum()) for axis in (1, 0))
    assert abs(high - wide) <= 1 and abs(high - 20 / 60 * SIDE) <= 1


def test_spacings_that_are_meant_to_be_equal_are() -> None:
    shown = picture((70, 53)).astype(np.float32) / 255
    square, fitted = fit_longest_side(shown, SIDE)
    for pixel in ((0.8, 0.8), (0.8, 0.80003)):
        other, other_fitted = fit_longest_side(shown, SIDE, pixel)
        assert torch.equal(other, square) and other_fitted == fitted


def test_published_sizes_have_the_published_keys() -> None:
    with torch.device("meta"):
        for arch, width, tensors in (("vit_b", 768, 314), ("vit_l", 1024, 482), ("vit_h", 1280, 594)):
            model = build_slice_model("sam", arch)
            state = model.state_dict()
            depth = ARCHITECTURES[arch].depth
            assert state["image_encoder.pos_embed"].shape == (1, 64, 64, width)
            last = f"image_encoder.blocks.{depth - 1}.attn.rel_pos_h"  # the last block is global
            assert state[last].shape == (127, width // ARCHITECTURES[arch].heads)
            assert state["image_encoder.blocks.0.attn.rel_pos_w"].shape[0] == 27
            assert state["image_encoder.neck.0.weight"].shape == (256, width, 1, 1)
            assert len(state) == tensors  # as many as in the official files


def test_unknown_names_are_told() -> None:
    with pytest.raises(ModelError, match="Did you mean 'medsam'"):
        build_slice_model("medsan")
    with pytest.raises(ModelError, match="vit_b, vit_h, vit_l"):
        build_slice_model("sam", "vit_g")


@pytest.mark.slow
def test_a_torchvision_that_does_not_fit_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    raising = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(raising)
    script = (
        "from medsam_app.errors import ModelError\n"
        "from medsam_app.models.slices.sam2d import build_slice_model\n"
        "try:\n    build_slice_model('sam')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "operator torchvision::nms does not exist" in run.stdout
    assert f"torch {torch.__version__.split('+')[0]}" in run.stdout
    minor = int(torch.__version__.split(".")[1])
    assert f"torchvision==0.{minor + 15}.*" in run.stdout


@pytest.mark.slow
def test_the_package_is_imported_only_where_a_slice_model_is_built() -> None:
    script = "import sys, medsam_app.models.slices.sam2d; print('segment_anything' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_weights_to_a_mask_in_space(variant: str) -> None:
    """With random weights the mask is no object, but it has all the properties of a prediction."""
    model = tiny(variant)
    assert isinstance(model, SliceSegmenter)
    shape = (40, 36, 12)
    array = np.stack([picture(shape[:2], seed) for seed in range(shape[2])], axis=-1)
    volume = Volume.from_array(array.astype(np.int16) * 4 - 200, np.diag([-0.8, -0.8, 3.0, 1.0]))
    predictor = VolumePredictor(model, propagation=Propagation(quality=0.0))
    predictor.set_volume(volume)
    prompts = [
        Box(lower=(8, 8, 2), upper=(30, 28, 9)),
        Point(coordinates=(20, 18, 6)),
        Point(coordinates=(24, 20, 4), positive=False),
        Point(coordinates=(10, 30, 10)),
    ]
    result = predictor.predict_prompts(prompts)
    assert result.unmet == ()
    assert result.encoded > 0
    assert 0 <= result.score <= 1
    assert result.mask[20, 18, 6] and result.mask[10, 30, 10] and not result.mask[24, 20, 4]
    again = VolumePredictor(model, propagation=Propagation(quality=0.0))
    session = Session(volume, again)
    added = session.add_object("thing")
    for prompt in prompts:
        session.add_prompt(added.id, prompt)
        made = session.prediction(added.id)
        assert made is not None
    assert np.array_equal(made.mask, result.mask)
    session.undo()
    before = session.prediction(added.id)
    assert before is not None
    assert np.array_equal(before.mask, predictor.predict_prompts(prompts[:-1]).mask)
