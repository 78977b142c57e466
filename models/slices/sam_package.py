"""Modules of the `segment_anything` package, imported on first use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

from torch import nn

from medsam_app.errors import ModelError


def sam_package() -> Any:
    """Import and return the package.

    Raises:
        ModelError: The package is missing or, more often, its dependency torchvision does not match torch.
    """
    try:
        import segment_anything
    except Exception as error:  # a mismatched torchvision raises errors of any type
        torch, torchvision = _version("torch"), _version("torchvision")
        raise ModelError(
            f"Slice models need the package segment-anything, which cannot be imported here "
            f"({type(error).__name__}: {error}). There are torch {torch}, torchvision {torchvision} and "
            f"segment-anything {_version('segment-anything')}; {_advice(torch)}"
        ) from error
    return segment_anything


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _advice(torch: str) -> str:
    """Return installation advice for a version of torch; torchvision's minor version is 15 higher."""
    release = re.match(r"2\.(\d+)", torch)
    fitting = f"torchvision==0.{int(release[1]) + 15}.*" if release else "the torchvision made for it"
    return (
        f"install {fitting} from the same place as torch, and segment-anything: "
        f'pip install "{fitting}" segment-anything.'
    )


@dataclass(frozen=True, kw_only=True)
class SamSizes:
    """Sizes of a SAM.

    Attributes:
        embed_dim: channels of the image encoder.
        depth: blocks of the image encoder.
        heads: attention heads of the image encoder.
        global_attn_indexes: blocks that attend to the whole slice; the others attend within windows.
        patch_size: side of a token, in pixels.
        window_size: side of a window, in tokens.
        prompt_dim: channels of the prompt encoder and the mask decoder.
        decoder_heads: attention heads of the mask decoder.
        decoder_mlp_dim: hidden channels of the mask decoder's MLPs.
    """

    embed_dim: int
    depth: int
    heads: int
    global_attn_indexes: tuple[int, ...]
    patch_size: int = 16
    window_size: int = 14
    prompt_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048


def decoder_parts(
    img_size: int, tokens: int, *, dim: int = 256, heads: int = 8, mlp_dim: int = 2048
) -> tuple[Any, Any]:
    """Build the prompt encoder and the mask decoder of a SAM, with untrained weights.

    Args:
        img_size: side of the image encoder's square input, in pixels.
        tokens: side of its output, in tokens.
        dim: channels of both.
        heads: attention heads of the mask decoder.
        mlp_dim: hidden channels of the mask decoder's MLPs.

    Raises:
        ModelError: As for `sam_package`.
    """
    modeling = sam_package().modeling
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=dim,
        image_embedding_size=(tokens, tokens),
        input_image_size=(img_size, img_size),
        mask_in_chans=16,
    )
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=dim, num_heads=heads, mlp_dim=mlp_dim)
    return prompt_encoder, modeling.MaskDecoder(transformer_dim=dim, transformer=transformer)


def sam_parts(img_size: int, sizes: SamSizes) -> tuple[Any, Any, Any]:
    """Build the image encoder, prompt encoder and mask decoder of a SAM, with untrained weights.

    Args:
        img_size: side of the encoder's square input, in pixels.
        sizes: sizes of the network.

    Raises:
        ModelError: As for `sam_package`.
    """
    modeling = sam_package().modeling
    image_encoder = modeling.ImageEncoderViT(
        img_size=img_size,
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.heads,
        out_chans=sizes.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=sizes.window_size,
        global_attn_indexes=sizes.global_attn_indexes,
    )
    return image_encoder, *decoder_parts(
        img_size,
        img_size // sizes.patch_size,
        dim=sizes.prompt_dim,
        heads=sizes.decoder_heads,
        mlp_dim=sizes.decoder_mlp_dim,
    )
