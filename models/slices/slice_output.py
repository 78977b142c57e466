"""Output of models in slice mode: the embedding of a slice, and mask candidates on it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SliceEmbedding:
    """Output of the encoder for one slice; independent of prompts.

    Attributes:
        features: (1, C, h, w) encoder output.
        fitted: rows and columns of the slice within the encoder's square.
        size: rows and columns of the slice.
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
    """Mask candidates for the same prompts on a slice.

    Attributes:
        logits: (M, H, W) float32 at the slice's resolution; above 0 is inside.
        low_res: (M, h, w) float32 logits at the decoder's resolution, for use as a mask prompt.
        quality: (M,) predicted IoU.
    """

    logits: Tensor
    low_res: Tensor
    quality: Tensor
