"""Slice mode: the 2D Segment Anything models on single slices of a volume.

SAM (Kirillov et al., arXiv:2304.02643), MedSAM (Ma et al., arXiv:2304.12306) and SAM-Med2D (Cheng et al.,
arXiv:2308.16184), built of the modules of the `segment_anything` package, so that the official
checkpoints load by their own keys. A slice is encoded once and decoded for every prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.errors import ModelError, unknown_name
from medsam_app.models.sam_attention import SamBlock
from medsam_app.models.sam_med2d import AdapterLayer
from medsam_app.models.sam_package import SamSizes, sam_parts
from medsam_app.models.slice_input import (
    SQUARE,
    Pixel,
    SliceInput,
    longest_side_fits,
    padded,
    shown_in_window,
    stretched,
    stretched_nearest,
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Input conventions of one family of checkpoints.

    Attributes:
        img_size: side of the square that the encoder sees.
        input: makes that square of a slice.
        adapters: whether the encoder's blocks carry SAM-Med2D's adapter layers.
        multimask: whether several candidates are requested: always, never, or None where prompts are
            ambiguous, which is a single click.
        boxes_only: whether it was trained with boxes alone: where there is a box, nothing else is told.
        rates_masks: whether its predicted IoU was trained; otherwise a mask's stability stands for it.
    """

    img_size: int
    input: SliceInput
    adapters: bool = False
    multimask: bool | None = None
    boxes_only: bool = False
    rates_masks: bool = True


VARIANTS = {
    "sam": Variant(img_size=1024, input=longest_side_fits),
    "medsam": Variant(img_size=1024, input=stretched, multimask=False, boxes_only=True, rates_masks=False),
    "sam_med2d": Variant(img_size=256, input=stretched_nearest, adapters=True, multimask=True),
}
ARCHITECTURES: dict[str, SamSizes] = {
    "vit_b": SamSizes(embed_dim=768, depth=12, heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": SamSizes(embed_dim=1024, depth=24, heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": SamSizes(embed_dim=1280, depth=32, heads=16, global_attn_indexes=(7, 15, 23, 31)),
}


@dataclass(frozen=True, eq=False)
class SliceEmbedding:
    """Output of the encoder for one slice; independent of prompts.

    Attributes:
        features: (1, C, h, w).
        fitted: rows and columns of the slice within the square that the encoder sees.
        size: rows and columns of the slice itself.
    """

    features: Tensor
    fitted: tuple[int, int]
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.features.numel() * self.features.element_size()


@dataclass(frozen=True, eq=False)
class SliceCandidates:
    """Several masks for the same prompts on a slice.

    Attributes:
        logits: (M, H, W) float32 at the slice's own resolution; above 0 is inside.
        low_res: (M, h, w) float32 the logits as the decoder gave them, a mask prompt for the next decoding.
        quality: (M,) predicted IoU.
    """

    logits: Tensor
    low_res: Tensor
    quality: Tensor


@runtime_checkable
class SliceSegmenter(Protocol):
    """Interface of models in slice mode; see `SliceModel`."""

    model_id: str
    weights_sha256: str
    adapter_id: str
    adapter_sha256: str

    @property
    def boxes_only(self) -> bool:
        """Whether the model was trained with boxes only."""

    def encode_slice(self, image: NDArray, *, window: tuple[float, float], pixel: Pixel = SQUARE) -> Any:
        """Encode a slice; see `SliceModel.encode_slice`."""

    def decode_slice(
        self,
        embedding: Any,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: Tensor | None = None,
    ) -> SliceCandidates:
        """Decode prompts on a slice; see `SliceModel.decode_slice`."""

    def low_res(self, embedding: Any, logits: Tensor) -> Tensor:
        """Resample logits to the model's mask input; see `SliceModel.low_res`."""


class SliceModel(nn.Module):
    """SAM's encoder, prompt encoder and mask decoder, for slices of raw intensities.

    Attributes:
        model_id: name under which the weights are known.
        weights_sha256: hash of the file the weights came from, or '' for fresh ones.
        adapter_id, adapter_sha256: name and hash of the adapter that is switched on, or ''.
        amp_dtype: type of the encoder's matrix products, None for float32.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        *,
        variant: Variant,
    ) -> None:
        super().__init__()
        self.image_encoder: Any = image_encoder
        self.prompt_encoder: Any = prompt_encoder
        self.mask_decoder: Any = mask_decoder
        self.variant = variant
        self.model_id = "unnamed"
        self.weights_sha256 = ""
        self.adapter_id = self.adapter_sha256 = ""
        self.amp_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.mask_decoder.iou_token.weight.device

    @property
    def boxes_only(self) -> bool:
        """Whether the model was trained with boxes only."""
        return self.variant.boxes_only

    def encode_slice(
        self, image: NDArray, *, window: tuple[float, float], pixel: Pixel = SQUARE
    ) -> SliceEmbedding:
        """Encode one slice.

        Args:
            image: (H, W) raw intensities, rows first.
            window: the intensities shown black and white.
            pixel: mm from row to row and from column to column.
        """
        square, fitted = self.variant.input(shown_in_window(image, window), self.variant.img_size, pixel)
        size = (int(image.shape[0]), int(image.shape[1]))
        return SliceEmbedding(self._encode(square.to(self.device)), fitted, size)

    def _encode(self, square: Tensor) -> Tensor:
        encoder = self.image_encoder
        with torch.autocast(square.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            # The convolution leaves channels first in memory, where every layer would have to gather them.
            x = (encoder.patch_embed(square) + encoder.pos_embed).contiguous()
            for block in encoder.blocks:
                x = block(x)
        return encoder.neck(x.float().permute(0, 3, 1, 2))

    def decode_slice(
        self,
        embedding: SliceEmbedding,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: Tensor | None = None,
        multimask: bool | None = None,
    ) -> SliceCandidates:
        """Masks for prompts on an encoded slice.

        Args:
            embedding: from `encode_slice`.
            points: (N, 2) pixel indices (row, column).
            labels: (N,) 1 = inside, 0 = outside.
            box: (4,) pixel indices: first row, first column, last row, last column.
            mask: (h, w) low-resolution logits of a mask to refine, see `SliceCandidates` and `low_res`.
            multimask: whether to give several candidates; by default as the variant has it.
        """
        told = None
        if points is not None:
            where = self._to_square(points, embedding)
            signs = torch.as_tensor(np.asarray(labels), dtype=torch.int32, device=self.device)
            told = where, signs[None]
        corners = None if box is None else self._to_square(np.reshape(box, (2, 2)), embedding).flatten(1)
        if multimask is None:
            multimask = self.variant.multimask
        if multimask is None:
            multimask = box is None and mask is None and points is not None and len(np.asarray(points)) == 1
        sparse, dense = self.prompt_encoder(
            points=told, boxes=corners, masks=None if mask is None else mask[None, None].to(self.device)
        )
        low_res, quality = self.mask_decoder(
            image_embeddings=embedding.features,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        quality = quality[0] if self.variant.rates_masks else stability(low_res[0])
        h, w = embedding.fitted
        whole = _resized(low_res, (self.variant.img_size, self.variant.img_size))[..., :h, :w]
        return SliceCandidates(_resized(whole, embedding.size)[0], low_res[0], quality)

    def _to_square(self, points: ArrayLike, embedding: SliceEmbedding) -> Tensor:
        """(1, N, 2) columns and rows within the square, for (N, 2) rows and columns of the slice."""
        scale = np.divide(embedding.fitted, embedding.size)
        scaled = np.asarray(points, dtype=float) * scale
        return torch.as_tensor(scaled[None, :, ::-1].copy(), dtype=torch.float32, device=self.device)

    def low_res(self, embedding: SliceEmbedding, logits: Tensor) -> Tensor:
        """(h, w) logits as a mask prompt wants them, for (H, W) logits on the slice."""
        fitted = _resized(logits[None, None].float(), embedding.fitted)
        square = padded(fitted, self.variant.img_size, float(logits.min()))  # padding is outside every object
        return _resized(square, self.prompt_encoder.mask_input_size)[0, 0]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """Return SAM's stability score of (M, h, w) logits: (M,).

    It is the IoU of the masks at thresholds above and below zero, a measure of certainty that needs no
    trained head. An empty mask has stability zero.
    """
    inner, outer = ((logits > at).flatten(1).sum(1) for at in (offset, -offset))
    return inner / outer.clamp_min(1)


def build_slice_model(variant: str, arch: str = "vit_b") -> SliceModel:
    """A model of published size, with fresh weights.

    `load_state_dict` takes the official checkpoint as it is (of SAM-Med2D what stands under 'model').

    Args:
        variant: 'sam', 'medsam' or 'sam_med2d'.
        arch: 'vit_b', 'vit_l' or 'vit_h'.

    Raises:
        ModelError: unknown names, or the `segment_anything` package does not work here.
    """
    if variant not in VARIANTS:
        raise ModelError(unknown_name("variant of SAM", variant, VARIANTS))
    if arch not in ARCHITECTURES:
        raise ModelError(unknown_name("architecture of SAM", arch, ARCHITECTURES))
    return build_slice_sam(VARIANTS[variant], ARCHITECTURES[arch])


def build_slice_sam(variant: Variant, sizes: SamSizes) -> SliceModel:
    """A model of any size, with fresh weights.

    Args:
        variant: how it wants slices and prompts; gives the side of the encoder's square.

    Raises:
        ModelError: the `segment_anything` package does not work here.
    """
    image_encoder, prompt_encoder, mask_decoder = sam_parts(variant.img_size, sizes)
    for n, block in enumerate(image_encoder.blocks):
        adapter = AdapterLayer(sizes.embed_dim) if variant.adapters else None
        image_encoder.blocks[n] = SamBlock(block, adapter)
    return SliceModel(image_encoder, prompt_encoder, mask_decoder, variant=variant).eval()
