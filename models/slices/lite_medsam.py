"""`lite_medsam`: LiteMedSAM, MedSAM distilled into a TinyViT, for slices.

LiteMedSAM (https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM) keeps SAM's prompt encoder and mask decoder.
It was trained with boxes on slices whose longest side is 256 pixels. Its encoder accepts other sizes; clicks
are decoded as boxes around them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from medsam_app.errors import ModelError
from medsam_app.models.slices.sam2d import SliceModel, Variant, stability
from medsam_app.models.slices.sam_package import decoder_parts
from medsam_app.models.slices.slice_input import fit_longest_area
from medsam_app.models.slices.slice_output import SliceCandidates, SliceEmbedding
from medsam_app.models.slices.tiny_vit import STRIDE, TinyVit, fold_norms

#: Side of the square in which the published model sees a slice, in pixels.
PUBLISHED_SIDE = 256
#: Sides of the boxes around clicks that are tried without a box, as fractions of the side of the square.
BOX_SIDES = (1 / 12, 1 / 6, 1 / 3, 2 / 3)
#: Weight of the difference between such a box and the bounds of its mask, when candidates are ordered.
MISFIT_WEIGHT = 0.3


class LiteMedSam(SliceModel):
    """LiteMedSAM's encoder, prompt encoder and mask decoder, with the names of its checkpoint.

    Attributes:
        image_encoder: the `TinyVit`; it can also be used alone, on images of any size.
    """

    def _encode(self, square: Tensor) -> Tensor:
        with torch.autocast(square.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.image_encoder(square).float()

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
        """Decode mask candidates for prompts on an encoded slice; see `SliceModel.decode_slice`.

        The network was trained with boxes and responds to nothing else. Clicks without a box are decoded as
        boxes of several sizes around the positive clicks, and as the bounds of the mask and these clicks. The
        order of the candidates is that of the predicted IoU times the fraction of clicks that a mask honours,
        less a part of the difference between box and mask: a mask that does not fill its box is another
        object's.

        Args:
            embedding: as for `SliceModel`.
            points: as for `SliceModel`.
            labels: as for `SliceModel`.
            box: as for `SliceModel`.
            mask: as for `SliceModel`.
            multimask: whether to return all candidates for clicks without a box, or the first alone, which is
                the default.
        """
        if box is not None or points is None or not np.any(labels):
            return super().decode_slice(
                embedding, points=points, labels=labels, box=box, mask=mask, multimask=multimask
            )
        positions, inside = self._to_square(points, embedding)[0], np.asarray(labels) > 0
        boxes = self._boxes(embedding, positions[torch.from_numpy(inside)], mask)
        low_res, iou = self._run_decoder(embedding, None, boxes, None, multimask=False)
        columns, rows = positions.round().long().clamp(0, self.variant.img_size - 1).unbind(1)
        in_mask = low_res[:, 0, rows, columns] > 0
        honoured = (in_mask == torch.from_numpy(inside).to(in_mask.device)).float().mean(1)
        rank = iou[:, 0] * honoured - MISFIT_WEIGHT * _misfit(low_res[:, 0] > 0, boxes)
        best = rank.argsort(descending=True, stable=True)[: None if multimask else 1]
        return self._candidates(embedding, low_res[best, 0], iou[best, 0])

    def _boxes(self, embedding: SliceEmbedding, clicks: Tensor, mask: Tensor | None) -> Tensor:
        """Return the boxes (B, 4) to decode for positive clicks (N, 2), in pixels of the square."""
        low, high = clicks.amin(0), clicks.amax(0)
        halves = [side * self.variant.img_size / 2 for side in BOX_SIDES]
        boxes = [torch.cat([low - half, high + half]) for half in halves]
        if mask is not None and (mask > 0).any():  # its logits have the resolution of the square
            rows, columns = torch.nonzero(mask > 0, as_tuple=True)
            corners = torch.stack([columns, rows], dim=1).to(clicks)
            boxes.append(torch.cat([corners.amin(0).minimum(low), corners.amax(0).maximum(high)]))
        last = clicks.new_tensor(embedding.fitted).flip(0).repeat(2) - 1
        return torch.stack(boxes).clamp_min(0).minimum(last)

    def _quality(self, low_res: Tensor, iou: Tensor) -> Tensor:
        """Return the product of predicted IoU and stability, each of which alone is too high."""
        return iou * stability(low_res)

    def speed_up(self) -> None:
        """Fold batch norms into convolutions, and store the encoder's weights in `amp_dtype`.

        For prediction, after the weights are loaded: the encoder's tensors lose the names of the checkpoint.
        """
        fold_norms(self.image_encoder)
        if self.amp_dtype is not None:  # or else autocast would convert every weight for every slice
            self.image_encoder.to(self.amp_dtype)


def _misfit(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return how far the bounds of masks are from their boxes, as a fraction of the boxes' longer sides.

    Args:
        masks: (B, h, w) boolean.
        boxes: (B, 4) first column, first row, last column, last row.

    Returns:
        (B,) values from 0 to 1; 1 for an empty mask.
    """
    lines = []
    for axis in (1, 2):  # columns, rows
        hit = masks.any(axis)
        first, last = hit.int().argmax(1), hit.shape[1] - 1 - hit.flip(1).int().argmax(1)
        lines.append((first, last))
    bounds = torch.stack([line[end] for end in (0, 1) for line in lines], dim=1)
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp_min(1)
    apart = ((bounds - boxes).abs().amax(1) / longer).clamp_max(1)
    return torch.where(masks.any(2).any(1), apart, torch.ones_like(apart))


def build_lite_medsam(side: int = PUBLISHED_SIDE) -> LiteMedSam:
    """Build the model with untrained weights; `load_state_dict` accepts the published checkpoint unchanged.

    Args:
        side: side of the square in which a slice is seen, in pixels; a multiple of 4. The weights are the
            same for all sides.

    Raises:
        ModelError: The side is no multiple of 4, or the `segment_anything` package cannot be imported.
    """
    if side <= 0 or side % STRIDE:
        raise ModelError(
            f"LiteMedSAM cannot see slices in {side} x {side} pixels; give a positive multiple of {STRIDE}."
        )
    variant = Variant(img_size=side, input=fit_longest_area, multimask=False, boxes_only=True)
    prompt_encoder, mask_decoder = decoder_parts(side, side // STRIDE)
    return LiteMedSam(TinyVit(), prompt_encoder, mask_decoder, variant=variant).eval()
