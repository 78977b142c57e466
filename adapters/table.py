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
    """Settings of a kind; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SpatialSettings(Settings):
    """bottleneck: channels that the depth-wise convolution works on."""

    bottleneck: int = Field(default=64, ge=1, le=4096)


class BottleneckSettings(Settings):
    """bottleneck: width between the two projections; scale: weight of the one parallel to the MLP."""

    bottleneck: int = Field(default=32, ge=1, le=4096)
    scale: float = 0.5


class LoraSettings(Settings):
    """Settings of low-rank adaptation.

    Attributes:
        rank: rank of the change of a projection.
        alpha: the change is multiplied by alpha / rank.
        projections: which projections are changed: q, k, v and out of the attention, both layers of the mlp.
        train: 'ab', or 'b' to keep A as it was drawn and train B alone.
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
    """Scale and shift has no settings."""


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """One kind of adapter.

    Attributes:
        name: what the user types.
        summary: one line for the table.
        settings: the model that checks its settings.
        mergeable: whether it can be folded into the weights of its base.
        paper: where the method comes from.
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
    """Entry of a kind.

    Raises:
        AdapterError: no kind of that name; the message lists the known ones and the closest.
    """
    if name not in ADAPTER_KINDS:
        raise AdapterError(unknown_name("kind of adapter", name, ADAPTER_KINDS))
    return ADAPTER_KINDS[name]


def check_settings(kind: str, values: Mapping[str, Any]) -> Settings:
    """Return the checked settings of a kind, with defaults for missing ones.

    Raises:
        AdapterError: an unknown kind, or settings that are unknown or out of range; all are listed.
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
