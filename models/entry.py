"""Fields of the table of models: checkpoints, packages that contain them, intensities; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["sam3d", "sam3d_vit", "3dsam_adapter", "slices", "lite_medsam"]
Architecture = Literal["tiny", "vit_b", "vit_l", "vit_h", "tiny_vit"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """Python package that contains a file of weights. None of its code is used.

    Attributes:
        name: name of the distribution.
        version: version that contains the published file.
        path: path of the file in the list of installed files.
        extra: extra of medsam-app that installs the package.
    """

    name: str
    version: str
    path: str
    extra: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Published file of weights, which several models may share.

    Attributes:
        file: name of the file, in the package or in the downloads folder.
        size: size in bytes; None if not confirmed.
        sha256: hash of the file, in hexadecimal; None if not confirmed. Without a hash a file cannot be
            downloaded, installed or loaded by name.
        url: address for downloads; None if there is none.
        licence: licence of the weights (SPDX, or words).
        page: page that describes the weights.
        by_hand: how to get the file without a url.
        embedded: whether the file is part of the package.
        package: another package that contains the file; None if there is none.
    """

    file: str
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    licence: str
    page: str
    by_hand: str = ""
    embedded: bool = False
    package: Package | None = None


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Normalisation of intensities before the image encoder.

    Attributes:
        text: description in words.
        clip: (lowest, highest) in the unit of the file, HU for CT; None for no clipping.
        mean: means subtracted after clipping, one per channel; empty for none.
        std: standard deviations divided by afterwards, one per channel; empty for none.
    """

    text: str
    clip: tuple[float, float] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model that can be chosen by name.

    Attributes:
        name: name that the user types.
        summary: a few words for the table.
        family: implementation of the model.
        arch: size of its image encoder.
        checkpoint: file of weights that it is built from.
        reference: papers of the model.
        expects: input of the image encoder, in words.
        normalisation: normalisation of intensities.
        side: side of the square in which a slice is seen, in pixels, if the network leaves a choice; or None.
        box_model: name of the slice model that also segments boxes; None if there is none.
    """

    name: str
    summary: str
    family: Family
    arch: Architecture
    checkpoint: Checkpoint
    reference: str
    expects: str
    normalisation: Normalisation
    side: int | None = None
    box_model: str | None = None
