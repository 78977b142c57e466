"""Light mask decoder: prompts joined with the embedding at every stride, two-way attention, candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsam_app.models.encoder import Embedding
from medsam_app.models.layers import Conv3d, ConvNorm, Mlp, Residual, TwoWayBlock, depth_to_space, resize_like
from medsam_app.models.mask_quality import QualityHead
from medsam_app.models.prompt_encoder import DENSE_CHANNELS, PromptEncoder, RoiPrompts

#: What the untrained decoder thinks of the dense channels: already a usable segmenter.
PRIOR = (1.0, 3.0, -1.0, -3.0, 1.0, 0.5, -0.5, -0.25, 3.0, 1.0, 0.0)
PRIOR_BIAS = -3.0
WALKER_WEIGHT = 3.0
#: Weight of the clicks' contest in the logits. It is not learned; it was set on labelled cases, with weights
#: that had been trained without it.
CONTEST_WEIGHT = 4.0


@dataclass
class MaskCandidates:
    """Several masks for the same prompts.

    Attributes:
        logits: (B, M, X, Y, Z) float32; above 0 is inside.
        quality: (B, M) predicted Dice of each, in [0, 1].
    """

    logits: Tensor
    quality: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Logits (B, 1, X, Y, Z) and quality (B,) of the candidate thought best."""
        quality, index = self.quality.max(dim=1)
        return self.logits[torch.arange(len(index)), index][:, None], quality


class MaskDecoder(nn.Module):
    """Prompt maps are encoded alongside the embedding, meet the tokens at stride 8, and run up again.

    A candidate is a product of its token's weights with a full-resolution feature map, added to the
    prior over the prompt channels, to the random walker's evidence and to the clicks' contest.
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
        own = self.mask_tokens.expand(batch, -1, -1)
        learned = torch.zeros_like(own) if prompts.learned is None else torch.nan_to_num(prompts.learned)
        own = own + learned.to(own.dtype)
        tokens = torch.cat([own, tokens.to(own.dtype)], dim=1)
        keep = torch.cat([real.new_ones(batch, self.candidates + 1), real], dim=1)
        position = self.prompt_encoder.grid_position(grid)
        image = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens, image = block(tokens, image, position, keep)
        # Once more where masks are made: on their way the tokens have gathered far more than they began with.
        tokens = self.norm(tokens[:, : self.candidates + 1]) + learned
        x = image.transpose(1, 2).unflatten(2, grid)

        middle = self.mix_middle(middle + resize_like(self.up_middle(x), middle))
        fine = self.mix_fine(fine + resize_like(self.up_fine(middle), fine))
        features = self.mix_full(torch.cat([depth_to_space(self.up_full(fine)), full], dim=1))
        weights = torch.stack([mlp(tokens[:, m]) for m, mlp in enumerate(self.hyper)], dim=1)
        mask = torch.einsum("bmc,bcxyz->bmxyz", weights[..., :-1], features).float()
        logits = base + mask + weights[..., -1].float()[:, :, None, None, None]
        looks = tokens[:, : self.candidates] + tokens[:, self.candidates :][:, :1]
        quality = self.quality(looks, logits, embedding.half[0], evidence, prompts.mask)
        return MaskCandidates(logits, quality)
