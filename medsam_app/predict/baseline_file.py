"""Names and file header of baseline networks; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field

#: Baseline networks that can be trained.
BASELINE_NETS = ("unet", "swin_unetr")
#: Value of 'format' in the metadata of a saved network.
FORMAT = "medsam_app rival net 1"


class BaselinePlan(BaseModel):
    """Fields of the training plan that a baseline network needs for segmentation.

    Attributes:
        labels: names of the labels that the network was trained on, by value.
        spacing: voxel size of the windows in mm, the same along each axis.
        window: voxels of a window along the axes closest to RAS.
        clip: lowest and highest intensity in the file's unit; None for no limits.
    """

    labels: dict[Annotated[int, Field(ge=1)], str] = Field(min_length=1)
    spacing: float = Field(gt=0)
    window: tuple[int, int, int]
    clip: tuple[float, float] | None


def write_header(name: str, plan_json: str) -> dict[str, str]:
    """Return the metadata of a network's safetensors file.

    Args:
        name: one of `BASELINE_NETS`.
        plan_json: the complete training plan as JSON.
    """
    return {"format": FORMAT, "name": name, "plan": plan_json}


def read_header(metadata: Mapping[str, str]) -> tuple[str, BaselinePlan]:
    """Return the name and the training plan of a network; the inverse of `write_header`.

    Raises:
        ValueError: the metadata do not belong to a baseline network.
    """
    if metadata.get("format") != FORMAT or metadata.get("name") not in BASELINE_NETS:
        raise ValueError("no baseline network")
    return metadata["name"], BaselinePlan.model_validate_json(metadata.get("plan", ""))
