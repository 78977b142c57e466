"""Light mask decoder: prompt maps, two-way attention and mask candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsam_app.models.encoder import Embedding
from medsam_app.models.layers import Conv3d, ConvNorm, Mlp, Residual, TwoWayBlock, depth_to_space, resize_like
from medsam_app.models.mask_quality import QualityHead
from medsam_app.models.prompt_encoder import DENSE_CHANNELS, PromptEncoder, RoiPrompts

#: Initial weights of the dense prompt channels, with which the untrained decoder already segments usably.
PRIOR = (1.0, 3.0, -1.0, -3.0, 1.0, 0.5, -0.5, -0.25, 3.0, 1.0, 0.0)
PRIOR_BIAS = -3.0
#: Initial weight of the random walker's evidence in the logits.
WALKER_WEIGHT = 3.0
#: Weight of the click contest in the logits. It is not trained: it was chosen on labelled cases, with weights
#: trained without the contest.
CONTEST_WEIGHT = 4.0


@dataclass
class MaskCandidates:
    """Mask candidates for the same prompts.

    Attributes:
        logits: (B, M, X, Y, Z) float32; above 0 is inside.
        quality: (B, M) predicted Dice of each candidate, in [0, 1].
    """

    logits: Tensor
    quality: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the logits (B, 1, X, Y, Z) and quality (B,) of the candidate with the highest quality."""
        quality, index = self.quality.max(dim=1)
        return self.logits[torch.arange(len(index)), index][:, None], quality


class MaskDecoder(nn.Module):
    """Decoder of prompts and an embedding to mask candidates.

    Prompt maps are encoded and joined with the embedding at every stride. At stride 8 the features exchange
    information with the tokens by two-way attention, and are then upsampled to full resolution. The logits of
    a candidate are the product of the features with weights computed from its token, plus a prior over the
    prompt channels, the random walker's evidence and the click contest.

    Args:
        widths: channels at strides 1, 2, 4 and 8.
        dim: channels of the tokens.
        heads: attention heads.
        depth: number of two-way blocks.
        candidates: number of masks.
    """

    def __init__(
        self, *, widths: tuple[int, int, int, int], dim: int, heads: int, depth: int, candidates: int
    ) -> None:
        super().__init__()
        full, fine, middle, coarse = widths
        self.prompt_encoder = PromptEncoder(dim=dim, coarse=coarse)
        self.full = ConvNorm(2 + DENSE_CHANNELS, full)
        self.fine = ConvNorm(full, fine, stride=2)
        self.join_fine = Residual(fine)
        self.middle = ConvNorm(fine, middle, stride=2)
        self.join_middle = Residual(middle)
        self.coarse = Conv3d(middle, dim, 3, stride=2, padding=1)
        self.join_coarse = nn.Conv3d(coarse, dim, 1)
        self.mask_tokens = nn.Parameter(torch.randn(candidates + 1, dim) * 0.02)
        self.blocks = nn.ModuleList(TwoWayBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.up_middle = nn.Conv3d(dim, middle, 1)
        self.mix_middle = Residual(middle)
        self.up_fine = nn.Conv3d(middle, fine, 1)
        self.mix_fine = Residual(fine)
        self.up_full = nn.Conv3d(fine, 8 * full, 1)
        self.mix_full = ConvNorm(2 * full, 2 * full)
        hyper = [Mlp(dim, dim, 2 * full + 1) for _ in range(candidates)]
        self.hyper = nn.ModuleList(hyper)
        self.quality = QualityHead(dim)
        self.prior = nn.Conv3d(DENSE_CHANNELS, 1, 1)
        self.walker_weight = nn.Parameter(torch.tensor(WALKER_WEIGHT))
        self.candidates = candidates
        with torch.no_grad():
            self.prior.weight.copy_(torch.tensor(PRIOR).view(1, -1, 1, 1, 1))
            nn.init.constant_(self.prior.bias, PRIOR_BIAS)  # type: ignore[arg-type]
            for mlp in hyper:
                mlp.last.weight.mul_(0.1)
                mlp.last.bias.zero_()

    def forward(self, embedding: Embedding, prompts: RoiPrompts) -> MaskCandidates:
        """Decode mask candidates from an embedding and prompts."""
        dense, evidence = self.prompt_encoder.dense(embedding, prompts)
        tokens, real = self.prompt_encoder.tokens(embedding, prompts)
        with torch.autocast(dense.device.type, enabled=False):
            base = self.prior(dense) + self.walker_weight * evidence
            base = base + CONTEST_WEIGHT * self.prompt_encoder.contest(embedding, prompts)

        full = self.full(torch.cat([embedding.image, dense], dim=1))
        fine = self.join_fine(self.fine(full) + embedding.fine)
        middle = self.join_middle(self.middle(fine) + embedding.middle)
        x = self.coarse(middle) + self.join_coarse(embedding.coarse)

        batch, grid = len(x), x.shape[2:]
        mask_tokens = self.mask_tokens.expand(batch, -1, -1)
        learned = (
            torch.zeros_like(mask_tokens) if prompts.learned is None else torch.nan_to_num(prompts.learned)
        )
        mask_tokens = mask_tokens + learned.to(mask_tokens.dtype)
        tokens = torch.cat([mask_tokens, tokens.to(mask_tokens.dtype)], dim=1)
        keep = torch.cat([real.new_ones(batch, self.candidates + 1), real], dim=1)
        position = self.prompt_encoder.grid_position(grid)
        image = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens, image = block(tokens, image, position, keep)
        # Add it again before the masks: in the blocks the tokens have grown far beyond their initial values.
        tokens = self.norm(tokens[:, : self.candidates + 1]) + learned
        x = image.transpose(1, 2).unflatten(2, grid)

        middle = self.mix_middle(middle + resize_like(self.up_middle(x), middle))
        fine = self.mix_fine(fine + resize_like(self.up_fine(middle), fine))
        features = self.mix_full(torch.cat([depth_to_space(self.up_full(fine)), full], dim=1))
        weights = torch.stack([mlp(tokens[:, m]) for m, mlp in enumerate(self.hyper)], dim=1)
        mask = torch.einsum("bmc,bcxyz->bmxyz", weights[..., :-1], features).float()
        logits = base + mask + weights[..., -1].float()[:, :, None, None, None]
        token_sums = tokens[:, : self.candidates] + tokens[:, self.candidates :][:, :1]
        quality = self.quality(token_sums, logits, embedding.half[0], evidence, prompts.mask)
        return MaskCandidates(logits, quality)
