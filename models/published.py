"""Network of the published 3DSAM-adapter, with the names of its checkpoints.

Gong et al., arXiv:2306.13465. Everything that does not depend on prompts is computed once per window: the
encoder, three of the decoder's four heads, and their contribution to its large convolution, which is linear
up to the norm that follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.vit3d import Vit3d

#: Channels of a feature and of a head, and number of learned queries per layer.
CHANNELS, HEAD_CHANNELS, QUERIES = 256, 128, 10


class PublishedAdapter(nn.Module):
    """Published spatial adapter; unlike `layers.SpatialAdapter` it ends with a ReLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, dim // 2)
        self.conv = nn.Conv3d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.linear2 = nn.Linear(dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Adapt tokens (B, H, W, D, C); the shape is kept."""
        # Channels are last in memory already, the layout in which the convolution is fast.
        inner = F.relu(self.linear1(x)).permute(0, 4, 1, 2, 3)
        inner = F.relu(self.conv(inner)).permute(0, 2, 3, 4, 1)
        return x + F.relu(self.linear2(inner))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, ...) features."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the channels of (B, C, ...) features."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PublishedEncoder(Vit3d):
    """ViT-B with adapters, and a neck after each quarter of its blocks."""

    def __init__(self, *, dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> None:
        super().__init__(
            dim=dim,
            depth=depth,
            heads=heads,
            global_blocks=global_blocks,
            adapter=lambda: PublishedAdapter(dim),
        )
        self.neck_3d = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(dim, CHANNELS, 1, bias=False),
                ChannelNorm(CHANNELS),
                nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
                ChannelNorm(CHANNELS),
            )
            for _ in range(4)
        )

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode a window (B, 1, H, W, D) to four features (B, 256, H / 4, W / 4, D / 4)."""
        levels = super().forward(volume)
        return [neck(x.permute(0, 4, 1, 2, 3)) for neck, x in zip(self.neck_3d, levels, strict=True)]


class PublishedAttention(nn.Module):
    """Attention between tokens and the image, with fewer inner than outer channels."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attend from (B, N, C) to (B, M, C)."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, query), (self.k_proj, memory), (self.v_proj, memory))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PublishedMlp(nn.Module):
    """Two-layer perceptron with the published names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the perceptron to (..., C) features."""
        return self.lin2(F.relu(self.lin1(x)))


class PublishedLayer(nn.Module):
    """Layer in which learned queries attend to point tokens, and the image attends to the queries."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = PublishedAttention(dim, heads, dim)
        self.norm1 = nn.LayerNorm(dim)
        # Present in the checkpoints, but without effect on the output.
        self.cross_attn_token_to_image = PublishedAttention(dim, heads, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = PublishedMlp(dim, hidden)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = PublishedAttention(dim, heads, dim // 2)
        self.global_query = nn.Parameter(0.1 * torch.randn(1, QUERIES, dim))

    def forward(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Update image tokens (B, N, C) and point tokens (B, P, C)."""
        tokens = torch.cat([self.global_query.expand(len(points), -1, -1), points], dim=1)
        tokens = self.norm2(tokens + self.norm1(self.self_attn(tokens, tokens)))
        queries, points = tokens[:, :QUERIES], tokens[:, QUERIES:]
        queries = self.norm3(queries + self.mlp(queries))
        return self.norm4(image + self.cross_attn_image_to_token(image, queries)), points


class PublishedPromptEncoder(nn.Module):
    """Prompt encoder that joins positive points with the encoder's last feature."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int = CHANNELS, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        # Present in the checkpoints; the published code never uses the resulting encoding.
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, dim // 2))
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(PublishedLayer(dim, heads, hidden) for _ in range(2))

    def forward(self, feature: Tensor, points: Tensor) -> Tensor:
        """Join a feature with points; the shape is kept.

        Args:
            feature: (B, 256, H, W, D) encoder feature at stride 4.
            points: (B, P, 3) voxel indices (h, w, d) of the window.
        """
        sides = torch.tensor(feature.shape[2:], device=points.device) * 4
        # grid_sample takes coordinates with the last axis first.
        where = ((points + 0.5) * 2 / sides - 1).flip(-1)[:, None, None]
        tokens = F.grid_sample(feature, where.to(feature.dtype), align_corners=False)[:, :, 0, 0].transpose(
            1, 2
        )
        image = feature.flatten(2).transpose(1, 2)
        for layer in self.transformer.layers:  # type: ignore[union-attr]
            image, tokens = layer(image, tokens)
        return image.transpose(1, 2).unflatten(2, feature.shape[2:])


def _head() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (CHANNELS, HEAD_CHANNELS):
        layers += [nn.Conv3d(channels, HEAD_CHANNELS, 3, padding=1, bias=False)]
        layers += [nn.InstanceNorm3d(HEAD_CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers)


class PublishedDecoder(nn.Module):
    """Decoder of four heads, joined with the image at half resolution, to two channels of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.mlahead = nn.Module()
        for number in (2, 3, 4, 5):
            self.mlahead.add_module(f"head{number}", _head())
        self.cls = nn.Sequential(
            nn.Conv3d(4 * HEAD_CHANNELS + 1, HEAD_CHANNELS, 3, padding=1, bias=False),
            nn.InstanceNorm3d(HEAD_CHANNELS),
            nn.ReLU(),
            nn.Conv3d(HEAD_CHANNELS, 2, 3, padding=1, bias=False),
        )

    @property
    def _kernel(self) -> Tensor:
        """Kernel (128, 4 * 128 + 1, 3, 3, 3) of the convolution that joins heads and image."""
        layer = self.cls[0]
        assert isinstance(layer, nn.Conv3d)
        return layer.weight

    def head(self, number: int, feature: Tensor) -> Tensor:
        """Apply one head to a feature at stride 4: (B, 128, H / 2, W / 2, D / 2)."""
        out = self.mlahead.get_submodule(f"head{number}")(feature)
        return F.interpolate(out, scale_factor=2, mode="trilinear", align_corners=True)

    def unprompted(self, features: list[Tensor], volume: Tensor) -> Tensor:
        """Return the prompt-independent part of the large convolution: (B, 128, H / 2, ...)."""
        kernel = self._kernel
        total = F.conv3d(F.interpolate(volume, scale_factor=0.5, mode="trilinear"), kernel[:, -1:], padding=1)
        for n, feature in enumerate(features[:3]):
            share = kernel[:, n * HEAD_CHANNELS : (n + 1) * HEAD_CHANNELS]
            total = total + F.conv3d(self.head(n + 2, feature), share, padding=1)
        return total

    def forward(self, unprompted: Tensor, prompted: Tensor) -> Tensor:
        """Return logits (B, 2, H, W, D); channel 1 is the object.

        Args:
            unprompted: result of `unprompted`.
            prompted: the last feature after the prompt encoder.
        """
        share = self._kernel[:, 3 * HEAD_CHANNELS : 4 * HEAD_CHANNELS]
        x = F.conv3d(self.head(5, prompted), share, padding=1)
        x = self.cls[1:](unprompted + x)
        return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)


class PublishedNetwork(nn.Module):
    """Encoder, prompt encoder and decoder; all axes are (H, W, D)."""

    def __init__(self, *, dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = PublishedEncoder(dim=dim, depth=depth, heads=heads, global_blocks=global_blocks)
        self.prompt_encoder = PublishedPromptEncoder()
        self.decoder = PublishedDecoder()

    def encode(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a window (B, 1, H, W, D) to its last feature and the decoder's prompt-independent part."""
        features = self.encoder(volume)
        return features[3], self.decoder.unprompted(features, volume)

    def decode(self, feature: Tensor, unprompted: Tensor, points: Tensor) -> Tensor:
        """Return logits (B, 2, H, W, D) for positive points (B, P, 3), voxel indices (h, w, d)."""
        return self.decoder(unprompted, self.prompt_encoder(feature, points))


def published_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a published checkpoint under the names of `PublishedNetwork`.

    Attention masks of shifted windows are omitted, since they are constants. Of the prompt encoders only the
    last is kept, since the others are not used.
    """
    parts = {
        "encoder": checkpoint["encoder_dict"],
        "prompt_encoder": checkpoint["feature_dict"][3],
        "decoder": checkpoint["decoder_dict"],
    }
    return {
        f"{part}.{key}": value
        for part, entries in parts.items()
        for key, value in entries.items()
        if not key.endswith("attn_mask")
    }
