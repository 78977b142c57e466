"""The 3D Segment Anything Model: encode a window once, decode it for every prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsam_app.models.decoder import MaskCandidates, MaskDecoder
from medsam_app.models.encoder import Embedding, ImageEncoder
from medsam_app.models.prompt_encoder import RoiPrompts

__all__ = ["Embedding", "MaskCandidates", "RoiPrompts", "Sam3D", "build_sam3d_tiny"]


class Sam3D(nn.Module):
    """Image encoder, prompt encoder and light two-way decoder, all in 3D.

    After Segment Anything (Kirillov et al., arXiv:2304.02643) and 3DSAM-adapter (Gong et al.,
    arXiv:2306.13465). Windows are (B, 1, X, Y, Z) with axes closest to RAS, isotropic in mm; their sides
    are multiples of 16, with SAM's ViT of 32.

    Args:
        encoder: maps intensities and validity of a window to an `Embedding`.
        decoder: maps an embedding and `RoiPrompts` to `MaskCandidates`.
        roi_shape: window the model is meant for, in voxels.

    Attributes:
        roi_shape: window the model is meant for, in voxels.
        model_id: name under which the weights are known.
        weights_sha256: hash of the file the weights came from, or '' for fresh ones.
        adapter_id, adapter_sha256: name and hash of the adapter that is switched on, or ''.
        encodings: most windows that are worth encoding for one prompt.
        spacing_mm: the one spacing of windows that it knows, or None where any will do.
        clip: lowest and highest distinguished intensity, set by the adapter in use; None for all.
        taught: tensors and modules of its own that are trained together with an adapter, because they are
            fresh or the method says so; for `Adapter.create(..., also=model.taught)`.
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
        self.amp_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def encode_image(self, image: Tensor, valid: Tensor) -> Embedding:
        """Encode raw intensities.

        Args:
            image: (B, 1, X, Y, Z) intensities in the file's unit.
            valid: (B, 1, X, Y, Z) booleans, inside the volume.
        """
        if self.clip is not None:
            image = image.clamp(*self.clip)
        with self._autocast():
            return self.encoder(image, valid)

    def decode(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        """Masks for prompts on an encoded window."""
        with self._autocast():
            return self.decoder(embedding, prompts)


def build_sam3d_tiny() -> Sam3D:
    """The embedded model: 64^3 voxels, sized for two CPU cores; fresh weights."""
    widths = (8, 24, 64, 192)
    encoder = ImageEncoder(widths=widths, depth=5, heads=6, adapter_dim=64)
    decoder = MaskDecoder(widths=widths, dim=128, heads=4, depth=2, candidates=3)
    return Sam3D(encoder, decoder, roi_shape=(64, 64, 64))
