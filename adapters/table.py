"""Table of adapter kinds and their settings; free of torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from medsam_app.errors import AdapterError, InvalidField, invalid_fields, unknown_name

Projection = Literal["q", "k", "v", "out", "mlp"]


class Settings(BaseModel):
    """Base class of the settings of a kind; unknown settings are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SpatialSettings(Settings):
    """Settings of the spatial adapter.

    Attributes:
        bottleneck: channels of the depth-wise convolution.
    """

    bottleneck: int = Field(default=64, ge=1, le=4096)


class BottleneckSettings(Settings):
    """Settings of the bottleneck adapter.

    Attributes:
        bottleneck: channels between the two projections.
        scale: factor of the bottleneck parallel to the MLP.
    """

    bottleneck: int = Field(default=32, ge=1, le=4096)
    scale: float = 0.5


class LoraSettings(Settings):
    """Settings of low-rank adaptation.

    Attributes:
        rank: rank of the change of a projection.
        alpha: numerator of the factor alpha / rank of the change.
        projections: adapted projections: q, k, v and out of the attention, mlp for both layers of the MLP.
        train: 'ab', or 'b' to train B alone and keep A at its random initial value.
    """

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    projections: tuple[Projection, ...] = Field(default=("q", "v"), min_length=1)
    train: Literal["ab", "b"] = "ab"

    @field_validator("projections")
    @classmethod
    def _each_once(cls, value: tuple[Projection, ...]) -> tuple[Projection, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a projection twice")
        return value


class SsfSettings(Settings):
    """Settings of scale and shift: none."""


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One kind of adapter.

    Attributes:
        name: name that the user types.
        summary: one line for the table.
        settings: class of its settings.
        mergeable: whether it can be merged into the weights of the base model.
        paper: paper of the method.
    """

    name: str
    summary: str
    settings: type[Settings]
    mergeable: bool
    paper: str

    @property
    def defaults(self) -> dict[str, Any]:
        """Default settings by name, as in JSON."""
        return self.settings().model_dump(mode="json")


#: Kinds of adapters by name.
ADAPTER_KINDS: dict[str, AdapterKind] = {
    kind.name: kind
    for kind in [
        AdapterKind(
            name="spatial",
            summary="depth-wise 3x3x3 convolution in a bottleneck before each block; sees neighbours",
            settings=SpatialSettings,
            mergeable=False,
            paper="3DSAM-adapter (arXiv:2306.13465)",
        ),
        AdapterKind(
            name="bottleneck",
            summary="two small MLPs a block: one after the attention, one beside the MLP",
            settings=BottleneckSettings,
            mergeable=False,
            paper="Medical SAM Adapter (arXiv:2304.12620), after Houlsby et al. (arXiv:1902.00751)",
        ),
        AdapterKind(
            name="lora",
            summary="low-rank changes of the projections; costs nothing once merged",
            settings=LoraSettings,
            mergeable=True,
            paper="LoRA (arXiv:2106.09685); training B alone: Zhu et al. (arXiv:2402.16842)",
        ),
        AdapterKind(
            name="ssf",
            summary="scale and shift after linear layers and norms; the smallest, costs nothing once merged",
            settings=SsfSettings,
            mergeable=True,
            paper="SSF (arXiv:2210.08823)",
        ),
    ]
}


def adapter_kind(name: str) -> AdapterKind:
    """Return the entry of a kind.

    Raises:
        AdapterError: There is no kind of that name; the message lists the known kinds and the closest one.
    """
    if name not in ADAPTER_KINDS:
        raise AdapterError(unknown_name("kind of adapter", name, ADAPTER_KINDS))
    return ADAPTER_KINDS[name]


def check_settings(kind: str, values: Mapping[str, Any]) -> Settings:
    """Return the validated settings of a kind, with defaults for missing ones.

    Raises:
        AdapterError: The kind is unknown, or settings are unknown or out of range; all of them are listed.
    """
    model = adapter_kind(kind).settings
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [_describe(field, list(model.model_fields)) for field in invalid_fields(error)]
    raise AdapterError(f"The settings of a '{kind}' adapter are wrong: {'; '.join(problems)}.")


def _describe(field: InvalidField, known: list[str]) -> str:
    if field.kind == "extra_forbidden":
        near = difflib.get_close_matches(field.name, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return f"there is no '{field.name}'{hint}, known: {', '.join(known) or 'none'}"
    return f"'{field.name}' {field.clause} (got {field.value!r})"
