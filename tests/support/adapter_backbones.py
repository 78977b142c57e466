"""Small backbones for tests of adapters: Sam3D, SAM's ViT in 3D, SAM itself, and one like SAM-Med2D's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medsam_app.models.decoder import MaskDecoder as Decoder3D
from medsam_app.models.encoder import ImageEncoder
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.vit3d import Vit3d


class CubeAttention(nn.Module):
    """Attention over (B, H, W, D, C) with the parameter names of SAM."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(1, 3).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2).view(x.shape))


class CubeMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, 2 * dim)
        self.lin2 = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class CubeBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = CubeAttention(dim), CubeMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CubeVit(nn.Module):
    """Stack of blocks on (B, H, W, D, C), for checking the formulas of single components."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CubeBlock(16) for _ in range(2))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class AdaptedBlock(Block):
    """SAM's block with a built-in adapter parallel to the MLP, as in SAM-Med2D."""

    def __init__(self) -> None:
        super().__init__(32, 2)
        self.Adapter = nn.Sequential(nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        seen = self.norm2(x)
        return x + self.mlp(seen) + self.Adapter(seen)


def build_sam3d() -> Sam3D:
    """Build a model smaller than `sam3d_tiny`."""
    widths = (8, 8, 16, 32)
    encoder = ImageEncoder(widths=widths, depth=2, heads=2, adapter_dim=8)
    decoder = Decoder3D(widths=widths, dim=32, heads=2, depth=1, candidates=2)
    return Sam3D(encoder, decoder, roi_shape=(16, 16, 32))


def build_sam() -> Sam:
    """Build a small model of `segment_anything`, with a windowed and a global block."""
    encoder = ImageEncoderViT(
        img_size=64,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=32,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    prompts = PromptEncoder(
        embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
    )
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer)
    return Sam(encoder, prompts, decoder)


def build_sam_med2d() -> Sam:
    """Build the same model with blocks that have built-in adapters."""
    sam = build_sam()
    sam.image_encoder.blocks = nn.ModuleList(AdaptedBlock() for _ in range(2))
    return sam


def _through(blocks: nn.ModuleList, x: Tensor, *args: object, checkpointed: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, *args, use_reentrant=False) if checkpointed else block(x, *args)
    return x


@dataclass(frozen=True)
class Backbone:
    """A model and how it is run.

    Attributes:
        build: a fresh model.
        run: its embedding of a fixed input, as one tensor.
        run_blocks: its blocks alone on fixed tokens, with activation checkpointing or without.
        also: a parameter and a module of the model, for copies.
    """

    name: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module], Tensor]
    run_blocks: Callable[..., Tensor]
    also: tuple[str, str]

    def make(self, seed: int = 0) -> nn.Module:
        """Return a new model with random norms and biases in place of the initial ones and zeros."""
        torch.manual_seed(seed)
        model = self.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def _sam3d(model: nn.Module) -> Tensor:
    embedding = model.encode_image(_noise(1, 1, 16, 16, 32), torch.ones(1, 1, 16, 16, 32, dtype=torch.bool))
    return torch.cat([embedding.middle.flatten(), embedding.coarse.flatten()])


SAM3D = Backbone(
    name="sam3d",
    build=build_sam3d,
    run=_sam3d,
    run_blocks=lambda model, **how: _through(model.encoder.blocks, _noise(1, 12, 32), (2, 2, 3), **how),
    also=("encoder.norm.weight", "decoder.blocks.0.mlp"),
)
CUBE = Backbone(
    name="cube",
    build=CubeVit,
    run=lambda model: model(_noise(2, 2, 3, 4, 16)),
    run_blocks=lambda model, **how: _through(model.blocks, _noise(2, 2, 3, 4, 16), **how),
    also=("norm.weight", "blocks.1.norm1"),
)
VIT_3D = Backbone(
    name="vit_3d",
    build=lambda: Vit3d(dim=16, depth=4, heads=2, global_blocks=(1,)),
    run=lambda model: model(_noise(1, 1, 32, 32, 32))[-1],
    run_blocks=lambda model, **how: _through(model.blocks, _noise(1, 8, 8, 8, 16), **how),
    also=("depth_embed", "blocks.1.norm1"),
)
SAM, MED2D = (
    Backbone(
        name=name,
        build=build,
        run=lambda model: model.image_encoder(_noise(1, 3, 64, 64)),
        run_blocks=lambda model, **how: _through(model.image_encoder.blocks, _noise(1, 4, 4, 32), **how),
        also=("image_encoder.pos_embed", "mask_decoder.output_upscaling"),
    )
    for name, build in (("sam", build_sam), ("sam_med2d", build_sam_med2d))
)
BACKBONES = [SAM3D, VIT_3D, SAM, MED2D]


def hooks_of(model: nn.Module) -> Iterator[str]:
    """Return every hook of a model, by module."""
    for name, module in model.named_modules():
        for table, hooks in vars(module).items():
            if table.endswith("_hooks") and hooks:
                yield f"{name}: {table}"
