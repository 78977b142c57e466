"""2D Segment Anything models, for slice mode.

SAM (Kirillov et al., arXiv:2304.02643), MedSAM (Ma et al., arXiv:2304.12306) and SAM-Med2D (Cheng et al.,
arXiv:2308.16184) are built from the modules of the `segment_anything` package, so the official checkpoints
load with their own keys. A slice is encoded once and decoded for every prompt.
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
from medsam_app.models.slices.sam_attention import SamBlock
from medsam_app.models.slices.sam_med2d import AdapterLayer
from medsam_app.models.slices.sam_package import SamSizes, sam_parts
from medsam_app.models.slices.slice_input import (
    SQUARE,
    Pixel,
    SliceInput,
    apply_window,
    fit_longest_side,
    pad_to_square,
    stretch,
    stretch_nearest,
)
from medsam_app.models.slices.slice_output import SliceCandidates, SliceEmbedding


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Input conventions of one family of checkpoints.

    Attributes:
        img_size: side of the encoder's square input, in pixels.
        input: function that converts a slice to that square.
        adapters: whether the encoder's blocks contain SAM-Med2D's adapter layers.
        multimask: whether several candidates are decoded: always (True), never (False), or only for
            ambiguous prompts (None), i.e. a single click.
        boxes_only: whether it was trained with boxes only; with a box, other prompts are not passed to it.
        rates_masks: whether its predicted IoU was trained; if not, the stability score replaces it.
    """

    img_size: int
    input: SliceInput
    adapters: bool = False
    multimask: bool | None = None
    boxes_only: bool = False
    rates_masks: bool = True


#: Variants by name.
VARIANTS = {
    "sam": Variant(img_size=1024, input=fit_longest_side),
    "medsam": Variant(img_size=1024, input=stretch, multimask=False, boxes_only=True, rates_masks=False),
    "sam_med2d": Variant(img_size=256, input=stretch_nearest, adapters=True, multimask=True),
}
#: Published sizes by name.
ARCHITECTURES: dict[str, SamSizes] = {
    "vit_b": SamSizes(embed_dim=768, depth=12, heads=12, global_attn_indexes=(2, 5, 8, 11)),
    "vit_l": SamSizes(embed_dim=1024, depth=24, heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": SamSizes(embed_dim=1280, depth=32, heads=16, global_attn_indexes=(7, 15, 23, 31)),
}


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
        variant: input conventions of the checkpoint.
        model_id: name in the table of models.
        weights_sha256: hash of the file of weights, or '' for untrained weights.
        adapter_id: name of the adapter that is switched on, or ''.
        adapter_sha256: hash of the adapter that is switched on, or ''.
        amp_dtype: dtype of the encoder's matrix products, None for float32.
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
            window: intensities that are displayed black and white.
            pixel: distance between rows and between columns, in mm.
        """
        square, fitted = self.variant.input(apply_window(image, window), self.variant.img_size, pixel)
        size = (int(image.shape[0]), int(image.shape[1]))
        return SliceEmbedding(self._encode(square.to(self.device)), fitted, size)

    def _encode(self, square: Tensor) -> Tensor:
        encoder = self.image_encoder
        with torch.autocast(square.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            # The convolution's output is channels first in memory; every layer would have to gather channels.
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
        """Decode mask candidates for prompts on an encoded slice.

        Args:
            embedding: result of `encode_slice`.
            points: (N, 2) pixel indices (row, column).
            labels: (N,) 1 = inside, 0 = outside.
            box: (4,) pixel indices: first row, first column, last row, last column.
            mask: (h, w) low-resolution logits of a mask to refine, see `SliceCandidates` and `low_res`.
            multimask: whether to decode several candidates; by default the variant decides.
        """
        clicks = None
        if points is not None:
            positions = self._to_square(points, embedding)
            click_labels = torch.as_tensor(np.asarray(labels), dtype=torch.int32, device=self.device)
            clicks = positions, click_labels[None]
        corners = None if box is None else self._to_square(np.reshape(box, (2, 2)), embedding).flatten(1)
        if multimask is None:
            multimask = self.variant.multimask
        if multimask is None:
            multimask = box is None and mask is None and points is not None and len(np.asarray(points)) == 1
        masks = None if mask is None else mask[None, None].to(self.device)
        low_res, quality = self._run_decoder(embedding, clicks, corners, masks, multimask=multimask)
        return self._candidates(embedding, low_res[0], quality[0])

    def _run_decoder(
        self,
        embedding: SliceEmbedding,
        clicks: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Decode B sets of prompts, in pixels of the square.

        Args:
            embedding: result of `encode_slice`.
            clicks: (B, N, 2) columns and rows, and (B, N) labels.
            boxes: (B, 4) first column, first row, last column, last row.
            masks: (B, 1, h, w) low-resolution logits.
            multimask: whether to decode several candidates of each set.

        Returns:
            Logits (B, M, h, w) and predicted IoU (B, M).
        """
        sparse, dense = self.prompt_encoder(points=clicks, boxes=boxes, masks=masks)
        return self.mask_decoder(
            image_embeddings=embedding.features,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )

    def _candidates(self, embedding: SliceEmbedding, low_res: Tensor, iou: Tensor) -> SliceCandidates:
        """Return (M, h, w) low-resolution logits as candidates on the slice, and their quality."""
        h, w = embedding.fitted
        square = _resize(low_res[None], (self.variant.img_size, self.variant.img_size))[..., :h, :w]
        return SliceCandidates(_resize(square, embedding.size)[0], low_res, self._quality(low_res, iou))

    def _quality(self, low_res: Tensor, iou: Tensor) -> Tensor:
        """Return the quality (M,) of (M, h, w) logits with the decoder's predicted IoU (M,)."""
        return iou if self.variant.rates_masks else stability(low_res)

    def _to_square(self, points: ArrayLike, embedding: SliceEmbedding) -> Tensor:
        """Convert (N, 2) rows and columns of the slice to (1, N, 2) columns and rows of the square."""
        scale = np.divide(embedding.fitted, embedding.size)
        scaled = np.asarray(points, dtype=float) * scale
        return torch.as_tensor(scaled[None, :, ::-1].copy(), dtype=torch.float32, device=self.device)

    def low_res(self, embedding: SliceEmbedding, logits: Tensor) -> Tensor:
        """Resample (H, W) logits on the slice to the (h, w) logits of a mask prompt."""
        fitted = _resize(logits[None, None].float(), embedding.fitted)
        # Fill with the lowest logit: padding is outside every object.
        square = pad_to_square(fitted, self.variant.img_size, float(logits.min()))
        return _resize(square, self.prompt_encoder.mask_input_size)[0, 0]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """Return SAM's stability score of (M, h, w) logits: (M,).

    The score is the IoU of the masks at thresholds `offset` and -`offset`, a measure of certainty that needs
    no trained head. An empty mask has stability zero.
    """
    inner, outer = ((logits > at).flatten(1).sum(1) for at in (offset, -offset))
    return inner / outer.clamp_min(1)


def build_slice_model(variant: str, arch: str = "vit_b") -> SliceModel:
    """Build a model of a published size, with untrained weights.

    `load_state_dict` accepts the official checkpoint unchanged (for SAM-Med2D, its entry 'model').

    Args:
        variant: 'sam', 'medsam' or 'sam_med2d'.
        arch: 'vit_b', 'vit_l' or 'vit_h'.

    Raises:
        ModelError: A name is unknown, or the `segment_anything` package cannot be imported.
    """
    if variant not in VARIANTS:
        raise ModelError(unknown_name("variant of SAM", variant, VARIANTS))
    if arch not in ARCHITECTURES:
        raise ModelError(unknown_name("architecture of SAM", arch, ARCHITECTURES))
    return build_slice_sam(VARIANTS[variant], ARCHITECTURES[arch])


def build_slice_sam(variant: Variant, sizes: SamSizes) -> SliceModel:
    """Build a model of any size, with untrained weights.

    Args:
        variant: input conventions, including the side of the encoder's square.
        sizes: sizes of the network.

    Raises:
        ModelError: The `segment_anything` package cannot be imported.
    """
    image_encoder, prompt_encoder, mask_decoder = sam_parts(variant.img_size, sizes)
    for n, block in enumerate(image_encoder.blocks):
        adapter = AdapterLayer(sizes.embed_dim) if variant.adapters else None
        image_encoder.blocks[n] = SamBlock(block, adapter)
    return SliceModel(image_encoder, prompt_encoder, mask_decoder, variant=variant).eval()
