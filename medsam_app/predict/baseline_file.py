"""Names and file header of baseline networks trained in addition to an adapter; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field

#: Baseline networks that can be trained.
BASELINE_NETS = ("unet", "swin_unetr")
#: Value of 'format' in the metadata of a saved network.
FORMAT = "medsam_app rival net 1"


class BaselinePlan(BaseModel):
    """Fields of the training plan that segmenting with a baseline network needs.

    Attributes:
        labels: names of the labels it was trained on, by value.
        spacing: mm of the voxels of its windows, the same along each axis.
        window: voxels along the axes closest to RAS.
        clip: lowest and highest intensity in the file's unit; None for all.
    """

    labels: dict[Annotated[int, Field(ge=1)], str] = Field(min_length=1)
    spacing: float = Field(gt=0)
    window: tuple[int, int, int]
    clip: tuple[float, float] | None


def write_header(name: str, plan_json: str) -> dict[str, str]:
    """Return the metadata of a network's safetensors file.

    Args:
        name: of `BASELINE_NETS`.
        plan_json: the whole plan of its training, as JSON.
    """
    return {"format": FORMAT, "name": name, "plan": plan_json}


def read_header(metadata: Mapping[str, str]) -> tuple[str, BaselinePlan]:
    """Return the name of a network and the plan it was trained by, the inverse of `write_header`.

    Raises:
        ValueError: the metadata are not those of a baseline network.
    """
    if metadata.get("format") != FORMAT or metadata.get("name") not in BASELINE_NETS:
        raise ValueError("no baseline network")
    return metadata["name"], BaselinePlan.model_validate_json(metadata.get("plan", ""))
