"""`lite_medsam`: LiteMedSAM, MedSAM distilled into a TinyViT, for slices.

LiteMedSAM (https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM) keeps SAM's prompt encoder and mask decoder.
It was trained with boxes on slices whose longest side is 256 pixels; its encoder accepts other sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsam_app.errors import ModelError
from medsam_app.models.sam2d import SliceModel, Variant
from medsam_app.models.sam_package import decoder_parts
from medsam_app.models.slice_input import fit_longest_area
from medsam_app.models.tiny_vit import STRIDE, TinyVit, fold_norms

#: Side of the square in which the published model sees a slice, in pixels.
PUBLISHED_SIDE = 256


class LiteMedSam(SliceModel):
    """LiteMedSAM's encoder, prompt encoder and mask decoder, with the names of its checkpoint.

    Attributes:
        image_encoder: the `TinyVit`; it can also be used alone, on images of any size.
    """

    def _encode(self, square: Tensor) -> Tensor:
        with torch.autocast(square.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.image_encoder(square).float()

    def speed_up(self) -> None:
        """Fold batch norms into convolutions, and store the encoder's weights in `amp_dtype`.

        For prediction, after the weights are loaded: the encoder's tensors lose the names of the checkpoint.
        """
        fold_norms(self.image_encoder)
        if self.amp_dtype is not None:  # or else autocast would convert every weight for every slice
            self.image_encoder.to(self.amp_dtype)


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
    variant = Variant(
        img_size=side, input=fit_longest_area, multimask=False, boxes_only=True, rates_masks=False
    )
    prompt_encoder, mask_decoder = decoder_parts(side, side // STRIDE)
    return LiteMedSam(TinyVit(), prompt_encoder, mask_decoder, variant=variant).eval()
