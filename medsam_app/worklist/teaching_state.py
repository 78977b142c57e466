"""Values of a teaching run: its examples, its state as stored in its folder, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Stage = Literal["teaching", "measuring", "offered", "no better", "failed", "cancelled", "interrupted"]
#: Number of clicks per object in the evaluation, and the Dice up to which they are counted.
CLICKS, TARGET = 5, 0.85


@dataclass(frozen=True, kw_only=True)
class Example:
    """Accepted case: its name, image and label map."""

    case: str
    image: Path
    label: Path


class Clicks(BaseModel):
    """Number of clicks to a Dice of `TARGET` on the held-out cases.

    Attributes:
        mean: mean over the objects; an object that does not reach the target counts as `CLICKS` + 1.
        never: fraction of objects that do not reach the target.
    """

    model_config = ConfigDict(frozen=True)
    mean: float
    never: float


class TeachingState(BaseModel):
    """State of a teaching run, as stored in its folder.

    Attributes:
        stage: progress or result of the run.
        began: start time, UTC in ISO 8601.
        minutes: minutes of training.
        learned, kept: names of the training cases and of the held-out cases.
        in_use: adapter to compare with, or None for the base model.
        before, after: clicks with the adapter in use and with the new adapter, once evaluated.
        message: sentence for the user.
    """

    model_config = ConfigDict(extra="forbid")
    stage: Stage
    began: str
    minutes: float
    learned: list[str]
    kept: list[str]
    in_use: str | None = None
    before: Clicks | None = None
    after: Clicks | None = None
    message: str = ""


def clicks_of(scores: dict[str, Any]) -> Clicks:
    """Return the clicks of the last interactive method.

    This is the method that is given the label, if the adapter has learned labels.
    """
    reach = [summary["reach"][0] for summary in scores["summaries"] if summary["reach"]][-1]
    return Clicks(mean=reach["clicks"]["value"], never=reach["never"])
