"""`3dsam_adapter_vit_b`: the published network with the interface of `Sam3D`.

The network accepts positive clicks only. A box without clicks is replaced by its centre, and a previous mask
without clicks or a box by its most central voxel. The predictor applies negative clicks and the bounds of
boxes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medsam_app.models.decoder import MaskCandidates
from medsam_app.models.encoder import normalise
from medsam_app.models.prompt_encoder import RoiPrompts
from medsam_app.models.published import PublishedNetwork
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.sam3d_vit import VIT_SHAPES, VitShape


@dataclass
class PublishedEmbedding:
    """Prompt-independent features of one window.

    Attributes:
        image: (B, 2, X, Y, Z) intensities in [-1, 1], see `encoder.normalise`.
        feature: (B, 256, H / 4, W / 4, D / 4) encoder feature that is joined with the points.
        unprompted: (B, 128, H / 2, W / 2, D / 2) prompt-independent part of the decoder.
    """

    image: Tensor
    feature: Tensor
    unprompted: Tensor

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.image, self.feature, self.unprompted))


class PublishedSam3D(Sam3D):
    """The published 3DSAM-adapter (Gong et al., arXiv:2306.13465).

    Args:
        network: the network, with axes (H, W, D).
        window: clip range (low, high), mean and standard deviation of the training intensities, in the unit
            of the file (HU); None if unknown, in which case mean and deviation of each window are used.
    """

    def __init__(
        self, network: PublishedNetwork, *, window: tuple[float, float, float, float] | None = None
    ) -> None:
        super().__init__(network.encoder, network.decoder, roi_shape=(128, 128, 128))
        self.prompt_encoder = network.prompt_encoder
        self.window = window
        self.encodings, self.spacing_mm = 1, 1.0  # as in its training

    def encode_image(self, image: Tensor, valid: Tensor) -> PublishedEmbedding:  # type: ignore[override]
        """Encode raw intensities (B, 1, X, Y, Z); see `Sam3D.encode_image`."""
        if self.window is None:
            total = image.masked_fill(~valid, 0).sum((1, 2, 3, 4), keepdim=True)
            mean = total / valid.sum((1, 2, 3, 4), keepdim=True).clamp_min(1)
            deviations = (image - mean).masked_fill(~valid, 0)
            standard_deviation = (
                deviations.square().sum((1, 2, 3, 4), keepdim=True) / valid[0].numel()
            ).sqrt()
            volume = deviations / standard_deviation.clamp_min(1e-6)
        else:
            low, high, centre, spread = self.window
            volume = ((image.clamp(low, high) - centre) / spread).masked_fill(~valid, 0)
        with self._autocast():
            volume = volume.transpose(2, 3)  # to (H, W, D): rows are y, columns x, depth z
            features = self.encoder(volume)
            unprompted = self.decoder.unprompted(features, volume)  # type: ignore[operator]
        return PublishedEmbedding(normalise(image, valid), features[3], unprompted)

    def decode(self, embedding: PublishedEmbedding, prompts: RoiPrompts) -> MaskCandidates:  # type: ignore[override]
        """Decode masks for prompts; the network predicts no quality, so its certainty takes that place."""
        with self._autocast():
            logits = []
            for n in range(len(prompts.coords)):
                points = _positive_points(prompts, n)[None, :, [1, 0, 2]]
                prompted = self.prompt_encoder(embedding.feature[n : n + 1], points)
                logits.append(self.decoder(embedding.unprompted[n : n + 1], prompted))
        channel_logits = torch.cat(logits).float().transpose(2, 3)
        object_logits = channel_logits[:, 1:] - channel_logits[:, :1]
        probability = object_logits.sigmoid()
        certainty = (
            2
            * (probability * (probability > 0.5)).sum((2, 3, 4))
            / (probability.sum((2, 3, 4)) + (probability > 0.5).sum((2, 3, 4))).clamp_min(1)
        )
        return MaskCandidates(object_logits, certainty)


def _positive_points(prompts: RoiPrompts, n: int) -> Tensor:
    """Return voxel indices (P, 3) inside the object of sample `n`; at least one if it has a prompt."""
    points = prompts.coords[n][prompts.labels[n] == 1].float()
    if len(points):
        return points
    if prompts.boxes is not None and not prompts.boxes[n].isnan().any():
        return prompts.boxes[n].float().mean(0, keepdim=True)
    for region in (prompts.mask, prompts.seeds):
        if region is not None and (region[n, 0] > 0.5).any():
            inside = torch.nonzero(region[n, 0] > 0.5).float()
            centre = inside.mean(0)
            return inside[(inside - centre).norm(dim=1).argmin()][None]
    return prompts.coords.new_zeros(0, 3).float()


def build_published(
    shape: VitShape = VIT_SHAPES["vit_b"], *, window: tuple[float, float, float, float] | None = None
) -> PublishedSam3D:
    """Build the published network with untrained weights, from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PublishedNetwork(
            dim=shape.dim, depth=shape.depth, heads=shape.heads, global_blocks=shape.global_blocks
        )
        return PublishedSam3D(network, window=window)
