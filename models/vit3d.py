"""SAM's ViT seeing volumes: folded patch embedding, blocks of shifted cubic windows.

After 3DSAM-adapter (Gong et al., arXiv:2306.13465). A window of the volume is cut into cells of 4 x 4 x 4
voxels, one token each; SAM's 16 x 16 patches see each cell enlarged four times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medsam_app.models.window_attention import WindowAttention, apart_in_shifted, from_windows, to_windows

#: Voxels along a token's side, and by how much SAM's patches see them enlarged.
CELL, ENLARGED = 4, 4
PATCH = CELL * ENLARGED
WINDOW = 8
#: What a voxel v in [0, 1] is multiplied by and what is added, for SAM's normalised red, green and blue.
SAM_SCALE = (255 / 58.395, 255 / 57.12, 255 / 57.375)
SAM_SHIFT = (-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375)
#: Windows that attention and MLP work on at a time on a CPU, so that what they hold stays in its caches.
WINDOWS_AT_ONCE = 8


def fold_matrix() -> Tensor:
    """(16, 6): what each of the 16 enlarged samples of a cell is of 6 native ones.

    The enlarged sample u lies at native position (u + 0.5) / 4 - 0.5 of its cell and is interpolated
    linearly, so a cell reaches one native sample beyond either side.
    """
    at = (torch.arange(PATCH) + 0.5) / ENLARGED - 0.5 + 1
    taps = torch.arange(CELL + 2)
    return (1 - (at[:, None] - taps).abs()).clamp_min(0)


def fold_embedding(
    patch: nn.Conv2d, slices: nn.Conv3d, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Up-sampling by four, SAM's patch embedding and the embedding along slices as one convolution.

    All three are linear. The kernel is worked out from the weights each time, so that gradients reach them.

    Args:
        patch: SAM's 16 x 16 convolution of three channels.
        slices: depth-wise convolution over 16 enlarged slices.
        scale, shift: (3,) a voxel v enters the three channels as scale * v + shift.

    Returns:
        kernel (C, 6, 6, 6) with axes (H, W, D), stride 4, for a volume padded by one replicated voxel, and
        bias (C,).
    """
    fold = fold_matrix().to(patch.weight)
    plane = torch.einsum("nchw,c,hi,wj->nij", patch.weight, scale, fold, fold)
    along = slices.weight.flatten(1)
    assert patch.bias is not None and slices.bias is not None  # both are made with one
    constant = patch.weight.sum((2, 3)) @ shift + patch.bias
    bias = constant * along.sum(1) + slices.bias
    return plane[:, :, :, None] * (along @ fold)[:, None, None, :], bias


class PatchEmbed(nn.Module):
    """Holds SAM's patch convolution under its published name; it is used folded and never called."""

    folded = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)


class MlpBlock(nn.Module):
    """SAM's MLP, under its published names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the perceptron to (..., C) tokens."""
        return self.lin2(F.gelu(self.lin1(x)))


class Block3d(nn.Module):
    """SAM's transformer block in cubic windows; every other one shifts them by half their side.

    Args:
        dim, heads: as SAM's.
        table: entries in SAM's tables of relative positions.
        shifted: whether the windows are shifted.
        adapter: what the tokens (B, H, W, D, C) go through first, if anything.
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
        """Map tokens (B, H, W, D, C), sides multiples of 8, to the same."""
        if self.adapter is not None:
            x = self.adapter(x)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        apart = apart_in_shifted(grid, WINDOW, x.device).repeat(len(x), 1, 1) if self.shifted else None
        if not torch.is_grad_enabled():
            return self._by_index(x, apart)
        shift = WINDOW // 2
        if self.shifted:
            x = torch.roll(x, (-shift,) * 3, dims=(1, 2, 3))
        windows = to_windows(x, WINDOW)
        parts = [self._within(windows[some], apart, some) for some in _some_at_once(windows)]
        x = from_windows(torch.cat(parts), WINDOW, grid)
        return torch.roll(x, (shift,) * 3, dims=(1, 2, 3)) if self.shifted else x

    def _by_index(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """Compute `forward` without gradients.

        Tokens are read and written in place, so that windows are shifted, cut and joined without copies.
        """
        places = torch.arange(x[..., 0].numel(), device=x.device).view(*x.shape[:4], 1)
        if self.shifted:
            places = torch.roll(places, (-WINDOW // 2,) * 3, dims=(1, 2, 3))
        windows = to_windows(places, WINDOW)[..., 0]
        tokens = x.flatten(0, 3)
        out = torch.empty_like(tokens)
        for some in _some_at_once(windows):
            out[windows[some]] = self._within(tokens[windows[some]], apart, some)
        return out.view(x.shape)

    def _within(self, windows: Tensor, apart: Tensor | None, some: slice) -> Tensor:
        """Attention and MLP on some of the windows: (n, window^3, C) to the same."""
        x = windows + self.attn(self.norm1(windows), None if apart is None else apart[some])
        return x + self.mlp(self.norm2(x))


def _some_at_once(windows: Tensor) -> list[slice]:
    """Parts of (N, ...) windows that are worked on at a time."""
    some = WINDOWS_AT_ONCE if windows.device.type == "cpu" else len(windows)
    return [slice(start, start + some) for start in range(0, len(windows), some)]


class Vit3d(nn.Module):
    """SAM's image encoder for volumes, up to its tokens.

    Entries carry SAM's names (patch_embed, pos_embed, blocks.N...) and those of 3DSAM-adapter
    (slice_embed, depth_embed, attn.rel_pos_d, attn.lr, blocks.N.adapter).

    Args:
        dim, depth, heads: width, blocks and heads of SAM's ViT.
        global_blocks: blocks that are global in SAM, whose tables of relative positions are longer.
        adapter: makes the adapter in front of each block, if there is one.
        scale, shift: how a voxel enters SAM's three channels, see `fold_embedding`.

    Attributes:
        checkpointing: in training, hold no activations inside blocks and work them out again.
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
        # At first a token is the mean of SAM's tokens over its slices.
        nn.init.constant_(self.slice_embed.weight, 1 / PATCH)
        nn.init.zeros_(self.slice_embed.bias)  # type: ignore[arg-type]

    def forward(self, volume: Tensor) -> list[Tensor]:
        """Encode a window.

        Args:
            volume: (B, 1, H, W, D), sides multiples of 32.

        Returns:
            tokens (B, H / 4, W / 4, D / 4, dim) after each quarter of the blocks.
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
        """Tokens (B, H / 4, W / 4, D / 4, dim) with their positions, before the first block."""
        kernel, bias = fold_embedding(self.patch_embed.proj, self.slice_embed, self.scale, self.shift)
        side = CELL + 2
        cells = F.pad(volume, (1, 1) * 3, mode="replicate")[:, 0]
        for axis in (1, 2, 3):
            cells = cells.unfold(axis, side, CELL)
        x = F.linear(cells.flatten(4), kernel.flatten(1).to(volume.dtype), bias.to(volume.dtype))
        return x + self.positions((x.shape[1], x.shape[2], x.shape[3]))

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """(1, H, W, D, dim) SAM's positions in the plane, resized to the grid, plus those along depth."""
        plane = self.pos_embed.permute(0, 3, 1, 2)
        if all(n <= 64 and 64 % n == 0 for n in grid[:2]):
            plane = F.adaptive_avg_pool2d(plane, grid[:2])
        else:
            plane = F.interpolate(plane, grid[:2], mode="bilinear", antialias=True)
        depth = self.depth_embed.transpose(1, 2)
        if grid[2] != depth.shape[2]:
            depth = F.interpolate(depth, grid[2], mode="linear")
        return plane.permute(0, 2, 3, 1)[:, :, :, None] + depth.transpose(1, 2)[:, None, None]
