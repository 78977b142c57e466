"""Adapter layer of SAM-Med2D (Cheng et al., arXiv:2308.16184)."""

from __future__ import annotations

from torch import Tensor, nn


class AdapterLayer(nn.Module):
    """Layer parallel to a block's MLP, with channel attention and a spatial mixing of tokens.

    Names and shapes are those of the published checkpoint, below a block: `Adapter.channel.0` and `.2`,
    `Adapter.spatial.0` and `.2`, `Adapter.norm`.

    Args:
        dim: channels of the tokens; a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.channel = nn.Sequential(
            nn.Linear(dim, dim // 4, bias=False),
            nn.ReLU(),
            nn.Linear(dim // 4, dim, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) tokens, H and W even, to the same shape."""
        weighted = tokens * self.channel(tokens.mean(dim=(1, 2)))[:, None, None]
        mixed = self.spatial(weighted.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(tokens + mixed)
