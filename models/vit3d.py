"""SAM's ViT for volumes: folded patch embedding, shifted cubic windows.

After 3DSAM-adapter (Gong et al., arXiv:2306.13465). A window of the volume is divided into cells of 4 x 4 x 4
voxels, one per token. Each cell is enlarged four times to fill SAM's 16 x 16 patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medsam_app.models.window_attention import WindowAttention, from_windows, separation_bias, to_windows

#: Side of a token in voxels, and the factor by which a cell is enlarged for SAM's patches.
CELL, ENLARGED = 4, 4
PATCH = CELL * ENLARGED
#: Side of an attention window in tokens.
WINDOW = 8
#: Factors and offsets that map a voxel in [0, 1] to SAM's normalised red, green and blue.
SAM_SCALE = (255 / 58.395, 255 / 57.12, 255 / 57.375)
SAM_SHIFT = (-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375)
#: Windows that attention and MLP process at a time on a CPU, so that their data fits into its caches.
WINDOWS_AT_ONCE = 8


def fold_matrix() -> Tensor:
    """Return the weights (16, 6) that interpolate the 16 enlarged samples of a cell from 6 native ones.

    The enlarged sample u is at native position (u + 0.5) / 4 - 0.5 of its cell and is interpolated linearly,
    so a cell depends on one native sample beyond each side.
    """
    positions = (torch.arange(PATCH) + 0.5) / ENLARGED - 0.5 + 1
    samples = torch.arange(CELL + 2)
    return (1 - (positions[:, None] - samples).abs()).clamp_min(0)


def fold_embedding(
    patch: nn.Conv2d, slices: nn.Conv3d, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return upsampling by four, SAM's patch embedding and the embedding along slices as one convolution.

    All three are linear. The kernel is computed from the weights each time, so that gradients reach them.

    Args:
        patch: SAM's 16 x 16 convolution of three channels.
        slices: depth-wise convolution over 16 enlarged slices.
        scale: (3,) factors: a voxel v enters the three channels as scale * v + shift.
        shift: (3,) offsets.

    Returns:
        The kernel (C, 6, 6, 6) with axes (H, W, D) and stride 4, for a volume padded by one replicated voxel,
        and the bias (C,).
    """
    fold = fold_matrix().to(patch.weight)
    plane = torch.einsum("nchw,c,hi,wj->nij", patch.weight, scale, fold, fold)
    along = slices.weight.flatten(1)
    assert patch.bias is not None and slices.bias is not None  # both are built with a bias
    constant = patch.weight.sum((2, 3)) @ shift + patch.bias
    bias = constant * along.sum(1) + slices.bias
    return plane[:, :, :, None] * (along @ fold)[:, None, None, :], bias


class PatchEmbed(nn.Module):
    """Container of SAM's patch convolution under its published name; used folded and never called."""

    folded = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)


class MlpBlock(nn.Module):
    """SAM's MLP, with its published names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the perceptron to (..., C) tokens."""
        return self.lin2(F.gelu(self.lin1(x)))


class Block3d(nn.Module):
    """SAM's transformer block in cubic windows, which every other block shifts by half their side.

    Args:
        dim: channels of the tokens.
        heads: attention heads.
        table: number of entries in SAM's tables of relative positions.
        shifted: whether the windows are shifted.
        adapter: module applied to the tokens (B, H, W, D, C) before the block, or None.
    """

    def __init__(
        self, dim: int, heads: int, *, table: int, shifted: bool, adapter: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, heads, window=WINDOW, table=table)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MlpBlock(dim, 4 * dim)
        self.adapter = adapter
        self.shifted = shifted

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to tokens (B, H, W, D, C), sides multiples of 8; the shape is kept."""
        if self.adapter is not None:
            x = self.adapter(x)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        separation = separation_bias(grid, WINDOW, x.device).repeat(len(x), 1, 1) if self.shifted else None
        if not torch.is_grad_enabled():
            return self._by_index(x, separation)
        shift = WINDOW // 2
        if self.shifted:
            x = torch.roll(x, (-shift,) * 3, dims=(1, 2, 3))
        windows = to_windows(x, WINDOW)
        parts = [self._within(windows[part], separation, part) for part in _window_parts(windows)]
        x = from_windows(torch.cat(parts), WINDOW, grid)
        return torch.roll(x, (shift,) * 3, dims=(1, 2, 3)) if self.shifted else x

    def _by_index(self, x: Tensor, separation: Tensor | None) -> Tensor:
        """Compute `forward` without gradients.

        Tokens are read and written by their indices, so that windows need not be copied to be shifted, cut
        and joined.
        """
        token_indices = torch.arange(x[..., 0].numel(), device=x.device).view(*x.shape[:4], 1)
        if self.shifted:
            token_indices = torch.roll(token_indices, (-WINDOW // 2,) * 3, dims=(1, 2, 3))
        windows = to_windows(token_indices, WINDOW)[..., 0]
        tokens = x.flatten(0, 3)
        out = torch.empty_like(tokens)
        for part in _window_parts(windows):
            out[windows[part]] = self._within(tokens[windows[part]], separation, part)
        return out.view(x.shape)

    def _within(self, windows: Tensor, separation: Tensor | None, part: slice) -> Tensor:
        """Apply attention and MLP to a part of the windows, (n, window^3, C); the shape is kept."""
        x = windows + self.attn(self.norm1(windows), None if separation is None else separation[part])
        return x + self.mlp(self.norm2(x))


def _window_parts(windows: Tensor) -> list[slice]:
    """Return slices of (N, ...) windows to process one after another."""
    count = WINDOWS_AT_ONCE if windows.device.type == "cpu" else len(windows)
    return [slice(start, start + count) for start in range(0, len(windows), count)]


class Vit3d(nn.Module):
    """SAM's image encoder for volumes, without the neck.

    Tensors have SAM's names (patch_embed, pos_embed, blocks.N...) and those of 3DSAM-adapter (slice_embed,
    depth_embed, attn.rel_pos_d, attn.lr, blocks.N.adapter).

    Args:
        dim: channels of the tokens.
        depth: number of blocks.
        heads: attention heads.
        global_blocks: blocks that are global in SAM; their tables of relative positions are longer.
        adapter: function that builds the adapter before each block, or None.
        scale: factors from a voxel to SAM's three channels, see `fold_embedding`.
        shift: offsets of the three channels.

    Attributes:
        checkpointing: whether training recomputes the activations inside blocks instead of storing them.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        global_blocks: tuple[int, ...],
        adapter: Callable[[], nn.Module] | None = None,
        scale: Sequence[float] = (1.0, 1.0, 1.0),
        shift: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        self.patch_embed = PatchEmbed(dim)
        self.slice_embed = nn.Conv3d(dim, dim, (1, 1, PATCH), stride=(1, 1, PATCH), groups=dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 64, 64, dim))
        self.depth_embed = nn.Parameter(torch.zeros(1, 32, dim))
        self.blocks = nn.ModuleList(
            Block3d(
                dim,
                heads,
                table=127 if n in global_blocks else 27,
                shifted=n % 2 == 0,
                adapter=adapter() if adapter else None,
            )
            for n in range(depth)
        )
        self.checkpointing = True
        # Untrained, a token is the mean of SAM's tokens over its slices.
        nn.init.constant_(self.slice_embed.weight, 1 / PATCH)
        nn.init.zeros_(self.slice_embed.bias)  # type: ignore[arg-type]

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode a window.

        Args:
            volume: (B, 1, H, W, D), sides multiples of 32.

        Returns:
            Tokens (B, H / 4, W / 4, D / 4, dim) after each quarter of the blocks.
        """
        x = self.embed(volume)
        levels = []
        for number, block in enumerate(self.blocks, start=1):
            if self.checkpointing and torch.is_grad_enabled() and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if number % (len(self.blocks) // 4) == 0:
                levels.append(x)
        return levels

    def embed(self, volume: Tensor) -> Tensor:
        """Return tokens (B, H / 4, W / 4, D / 4, dim) with position embeddings, before the first block."""
        kernel, bias = fold_embedding(self.patch_embed.proj, self.slice_embed, self.scale, self.shift)
        side = CELL + 2
        cells = F.pad(volume, (1, 1) * 3, mode="replicate")[:, 0]
        for axis in (1, 2, 3):
            cells = cells.unfold(axis, side, CELL)
        x = F.linear(cells.flatten(4), kernel.flatten(1).to(volume.dtype), bias.to(volume.dtype))
        return x + self.positions((x.shape[1], x.shape[2], x.shape[3]))

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Return position embeddings (1, H, W, D, dim): SAM's, resized, plus those along depth."""
        plane = self.pos_embed.permute(0, 3, 1, 2)
        if all(n <= 64 and 64 % n == 0 for n in grid[:2]):
            plane = F.adaptive_avg_pool2d(plane, grid[:2])
        else:
            plane = F.interpolate(plane, grid[:2], mode="bilinear", antialias=True)
        depth = self.depth_embed.transpose(1, 2)
        if grid[2] != depth.shape[2]:
            depth = F.interpolate(depth, grid[2], mode="linear")
        return plane.permute(0, 2, 3, 1)[:, :, :, None] + depth.transpose(1, 2)[:, None, None]
