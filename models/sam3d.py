"""`Sam3D`, the common interface of the 3D models, and the embedded model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsam_app.models.decoder import MaskCandidates, MaskDecoder
from medsam_app.models.encoder import Embedding, ImageEncoder
from medsam_app.models.prompt_encoder import RoiPrompts
from medsam_app.models.slices.sam2d import SliceSegmenter

__all__ = ["Embedding", "MaskCandidates", "RoiPrompts", "Sam3D", "build_sam3d_tiny"]


class Sam3D(nn.Module):
    """Image encoder, prompt encoder and light two-way decoder, all in 3D.

    After Segment Anything (Kirillov et al., arXiv:2304.02643) and 3DSAM-adapter (Gong et al.,
    arXiv:2306.13465). A window is encoded once and decoded for every prompt. Windows are (B, 1, X, Y, Z),
    isotropic in mm, with the axes closest to RAS. Their sides are multiples of 16; of 32 with SAM's ViT.

    Args:
        encoder: module that maps a window's intensities and validity to an `Embedding`.
        decoder: module that maps an embedding and `RoiPrompts` to `MaskCandidates`.
        roi_shape: size of the model's windows, in voxels.

    Attributes:
        roi_shape: size of the model's windows, in voxels.
        model_id: name in the table of models.
        weights_sha256: hash of the file of weights, or '' for untrained weights.
        adapter_id: name of the adapter that is switched on, or ''.
        adapter_sha256: hash of the adapter that is switched on, or ''.
        encodings: maximum number of windows to encode for one prompt.
        spacing_mm: required spacing of windows in mm, or None for any.
        clip: range that intensities are clipped to, set by the adapter in use; None for no clipping.
        taught: names of tensors and modules of the model that are trained together with an adapter, because
            they are untrained or the method requires it; for `Adapter.create(..., also=model.taught)`.
        redraws_outlines: whether it was trained to redraw the outline of a rough mask.
        amp_dtype: dtype of matrix products and convolutions, None for float32.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, roi_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.roi_shape = roi_shape
        self.model_id = "unnamed"
        self.weights_sha256 = ""
        self.adapter_id = self.adapter_sha256 = ""
        self.encodings = 4
        self.spacing_mm: float | None = None
        self.clip: tuple[float, float] | None = None
        self.taught: tuple[str, ...] = ()
        self.redraws_outlines = False
        self.amp_dtype: torch.dtype | None = None
        self._box_models: tuple[SliceSegmenter, ...] = ()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def box_model(self) -> SliceSegmenter | None:
        """Slice model that also segments boxes, or None; its tensors are not part of this module."""
        return self._box_models[0] if self._box_models else None

    def attach_box_model(self, model: SliceSegmenter) -> None:
        """Let a slice model segment boxes, too."""
        self._box_models = (model,)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def encode_image(self, image: Tensor, valid: Tensor) -> Embedding:
        """Encode raw intensities.

        Args:
            image: (B, 1, X, Y, Z) intensities in the unit of the file.
            valid: (B, 1, X, Y, Z) booleans, inside the volume.
        """
        if self.clip is not None:
            image = image.clamp(*self.clip)
        with self._autocast():
            return self.encoder(image, valid)

    def decode(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        """Decode mask candidates for prompts on an encoded window."""
        with self._autocast():
            return self.decoder(embedding, prompts)


def build_sam3d_tiny() -> Sam3D:
    """Build the embedded model, for windows of 64^3 voxels and two CPU cores, with untrained weights."""
    widths = (8, 24, 64, 192)
    encoder = ImageEncoder(widths=widths, depth=5, heads=6, adapter_dim=64)
    decoder = MaskDecoder(widths=widths, dim=128, heads=4, depth=2, candidates=3)
    model = Sam3D(encoder, decoder, roi_shape=(64, 64, 64))
    model.redraws_outlines = True
    return model
