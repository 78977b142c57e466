"""`sam3d_vit_b`, `_l`, `_h`: SAM's ViT in 3D, with the light decoder.

The encoder is SAM's, frozen, and accepts any official checkpoint. The parts that SAM lacks (positions along
depth, the neck and the decoder) start untrained; the prior makes the decoder usable before any training.
Adapters (`medsam_app.adapters`) are attached from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.errors import ModelError
from medsam_app.models.checkpoints import describe_architecture, load_strictly
from medsam_app.models.decoder import MaskCandidates, MaskDecoder
from medsam_app.models.encoder import Embedding, normalise
from medsam_app.models.layers import Conv3d, ConvNorm, Residual, depth_to_space
from medsam_app.models.prompt_encoder import RoiPrompts
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.vit3d import SAM_SCALE, SAM_SHIFT, Vit3d


@dataclass(frozen=True)
class VitShape:
    """Size of one of SAM's image encoders.

    Attributes:
        dim: channels of the tokens.
        depth: number of blocks.
        heads: attention heads.
        global_blocks: indices of the blocks with global attention in SAM.
    """

    dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VIT_SHAPES = {
    "vit_b": VitShape(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": VitShape(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": VitShape(1280, 32, 16, (7, 15, 23, 31)),
}
#: Channels of the decoder at its strides 1, 2, 4 and 8.
WIDTHS = (8, 24, 64, 192)


class VitNeck(nn.Module):
    """Neck that joins the ViT's four levels to features at strides 4, 8 and 16 of the window."""

    def __init__(self, dim: int, widths: tuple[int, int, int, int], mixed: int = 96) -> None:
        super().__init__()
        _, fine, middle, coarse = widths
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.mix = nn.ModuleList(nn.Linear(dim, mixed) for _ in range(4))
        self.fine = nn.Conv3d(mixed, fine, 1)
        self.middle = nn.Sequential(ConvNorm(mixed, middle, stride=2), Residual(middle))
        self.coarse = Conv3d(middle, coarse, 3, stride=2, padding=1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Map four levels of tokens (B, H, W, D, dim) to features (B, C, ...) at three strides."""
        mixed = sum(mix(norm(x)) for mix, norm, x in zip(self.mix, self.norms, levels, strict=True))
        x = F.silu(mixed).permute(0, 4, 1, 2, 3)
        middle = self.middle(x)
        return self.fine(x), middle, self.coarse(middle)


class VitImageEncoder(nn.Module):
    """SAM's ViT, applied to a window's intensities between their 0.5 and 99.5 percentiles."""

    def __init__(self, shape: VitShape, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        self.vit = Vit3d(
            dim=shape.dim,
            depth=shape.depth,
            heads=shape.heads,
            global_blocks=shape.global_blocks,
            scale=SAM_SCALE,
            shift=SAM_SHIFT,
        )
        self.neck = VitNeck(shape.dim, widths)

    def forward(self, image: Tensor, valid: Tensor) -> Embedding:
        """Encode raw intensities (B, 1, X, Y, Z), sides multiples of 32; see `normalise`."""
        views = normalise(image, valid)
        # SAM's rows are the volume's y, its columns x; z is the axis across slices.
        levels = self.vit((views[:, :1].transpose(2, 3) + 1) / 2)
        fine, middle, coarse = (f.transpose(2, 3) for f in self.neck(levels))
        return Embedding(views, valid, fine, middle, coarse)


class Sharpen(nn.Module):
    """Upsampling of logits to full resolution with a skip from the image; interpolation when untrained."""

    def __init__(self, candidates: int, hidden: int = 16) -> None:
        super().__init__()
        self.mix = ConvNorm(candidates + 16, hidden)
        self.detail = nn.Conv3d(hidden, 8 * candidates, 1)
        nn.init.zeros_(self.detail.weight)
        nn.init.zeros_(self.detail.bias)  # type: ignore[arg-type]

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Upsample logits (B, M, X, Y, Z) to (B, M, 2X, 2Y, 2Z), given the image (B, 2, 2X, 2Y, 2Z)."""
        smooth = F.interpolate(logits, scale_factor=2, mode="trilinear", align_corners=False)
        hidden = self.mix(torch.cat([logits.to(image.dtype), space_to_depth(image)], dim=1))
        return smooth + depth_to_space(self.detail(hidden)).float()


def space_to_depth(x: Tensor) -> Tensor:
    """Rearrange (B, C, 2X, 2Y, 2Z) to (B, 8 C, X, Y, Z); the inverse of `depth_to_space`."""
    b, c, i, j, k = x.shape
    x = x.reshape(b, c, i // 2, 2, j // 2, 2, k // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, 8 * c, i // 2, j // 2, k // 2)


class HalfDecoder(nn.Module):
    """Light decoder on the window at half resolution, where a token of the ViT covers two voxels."""

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS, candidates: int = 3) -> None:
        super().__init__()
        self.decoder = MaskDecoder(widths=widths, dim=128, heads=4, depth=2, candidates=candidates)
        self.sharpen = Sharpen(candidates)

    def forward(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        """Decode mask candidates at half resolution and upsample them to full resolution."""
        image, valid = embedding.half
        candidates = self.decoder(replace(embedding, image=image, valid=valid), halve_prompts(prompts))
        return MaskCandidates(self.sharpen(candidates.logits, embedding.image), candidates.quality)


def halve_prompts(prompts: RoiPrompts) -> RoiPrompts:
    """Return prompts in voxels of the window at half resolution."""

    def scale(coords: Tensor) -> Tensor:
        return (coords.float() + 0.5) / 2 - 0.5

    def pool(x: Tensor | None) -> Tensor | None:
        return None if x is None else F.avg_pool3d(x.float(), 2)

    seeds = pool(prompts.seeds)
    return RoiPrompts(
        coords=scale(prompts.coords),
        labels=prompts.labels,
        boxes=None if prompts.boxes is None else scale(prompts.boxes),
        mask=pool(prompts.mask),
        # A voxel is unknown if any part of it is.
        seeds=None if seeds is None else seeds.trunc().to(torch.int8),
        learned=prompts.learned,
    )


def build_sam3d_vit(shape: VitShape, *, roi_shape: tuple[int, int, int] = (128, 128, 128)) -> Sam3D:
    """Build SAM's ViT in 3D with the light decoder, with untrained weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sam3D(VitImageEncoder(shape), HalfDecoder(), roi_shape=roi_shape)
    model.encodings = 2  # each encoding takes a minute on two cores
    blocks = [f"encoder.vit.blocks.{n}" for n in range(shape.depth)]
    model.taught = (
        "encoder.vit.depth_embed",
        "encoder.vit.slice_embed",
        *(f"{block}.{part}" for block in blocks for part in ("norm1", "norm2", "attn.rel_pos_d")),
        "encoder.neck",
        "decoder",
    )
    return model


def load_vit_weights(model: Sam3D, state: Mapping[str, Tensor], *, what: str, source: str) -> None:
    """Load an official SAM checkpoint into the encoder, or a state of this model into the whole model.

    Args:
        model: result of `build_sam3d_vit`.
        state: weights by name.
        what: name of the model in error messages.
        source: name of the file in error messages.

    Raises:
        ModelError: The weights belong to another network; the message names both.
    """
    if "mask_decoder.iou_token.weight" not in state and not any(
        k.startswith("image_encoder.") for k in state
    ):
        return load_strictly(model, state, what=what, source=source)
    vit = cast(VitImageEncoder, model.encoder).vit
    encoder_state = vit.state_dict()
    # Names and shapes of a SAM checkpoint of this size, to describe both networks in the error.
    expected = {
        f"image_encoder.{key}": value for key, value in encoder_state.items() if not is_new_in_3d(key)
    }
    architecture, expected_architecture = (
        describe_architecture({"image_encoder.neck.0.weight": None, **tensors})
        for tensors in (state, expected)
    )
    if architecture != expected_architecture:
        raise ModelError(
            f"{source} is a checkpoint of {architecture}, but {what} needs {expected_architecture}."
        )
    new_tensors = {key: value for key, value in encoder_state.items() if is_new_in_3d(key)}
    load_strictly(vit, {**new_tensors, **convert_to_3d(state)}, what=what, source=source)


def is_new_in_3d(key: str) -> bool:
    """Return whether a tensor of `Vit3d` has no counterpart in SAM's encoder."""
    return key.startswith(("depth_embed", "slice_embed")) or key.endswith("attn.lr")


def convert_to_3d(sam: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the image encoder of a SAM checkpoint to weights of `Vit3d`.

    As in the paper, tables of relative positions along depth start as the mean of the two in-plane tables.
    SAM's neck, prompt encoder and mask decoder have no counterpart and are dropped.

    Args:
        sam: an official checkpoint, image_encoder.*, prompt_encoder.*, mask_decoder.*.

    Returns:
        Weights of `Vit3d` by name, without those that are new in 3D.
    """
    prefix = "image_encoder."
    converted = {
        key.removeprefix(prefix): value
        for key, value in sam.items()
        if key.startswith(prefix) and not key.startswith(prefix + "neck.")
    }
    for key in [key for key in converted if key.endswith("rel_pos_h")]:
        name = key.removesuffix("rel_pos_h")
        converted[name + "rel_pos_d"] = (converted[key] + converted[name + "rel_pos_w"]) / 2
    return converted
