"""Recipe of a pretraining run, a small JSON file; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from medsam_app.errors import SettingsError, invalid_fields, setting_problem, unknown_name
from medsam_app.training.run_settings import RunSettings, TimeUnit

#: Sources of windows.
SHARES = ("real", "pseudo", "heads", "synthetic")

_Positive = Annotated[int, Field(ge=1)]
#: Side of a window, which the encoder halves four times.
_Side = Annotated[int, Field(ge=16, multiple_of=16)]


class Recipe(RunSettings):
    """Settings of a pretraining run.

    Attributes:
        hours: length of the run as a time; None if it is a number of steps. steps: length of the run as a
        number of updates; None if it is a time. The result of such a run does not
            depend on the machine's speed or on interruptions.
        shares: relative frequency of the sources of windows.
        windows: (side in voxels, batch size) pairs, one drawn each step.
        rounds: fewest and most decodes per example.
        ema: decay of the running average of the weights; the average is exported.
        optimizer: 'adamw', or 'muon', which updates the kernels of linear layers and convolutions and leaves
            all other tensors to AdamW.
        only: prefix of the names of the parameters to train; '' for all.
        validate_minutes: training time between two validations if the length is a time; 0 for none.
        validate_steps: updates between two validations if the length is a number of updates; 0 for none.
        validation_windows: number of windows of each kind in a validation.
    """

    TIME = TimeUnit("hours", 3600, "{:.2f} of {:.2f} h")

    seed: int = Field(0, ge=0, lt=2**63)
    hours: float | None = Field(None, gt=0)
    steps: _Positive | None = None
    shares: dict[str, Annotated[float, Field(ge=0)]]
    windows: list[tuple[_Side, _Positive]] = Field(min_length=1)
    rounds: tuple[_Positive, _Positive] = (2, 4)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.02, ge=0)
    warmup_steps: _Positive = 100
    ema: float = Field(0.995, ge=0, lt=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    only: str = ""
    save_minutes: float = Field(5.0, ge=0)
    validate_minutes: float = Field(20.0, ge=0)
    validate_steps: int = Field(200, ge=0)
    validation_windows: _Positive = 32

    @field_validator("shares")
    @classmethod
    def _known_shares(cls, shares: dict[str, float]) -> dict[str, float]:
        for name in shares:
            if name not in SHARES:
                raise ValueError(unknown_name("share", name, SHARES))
        if not any(shares.values()):
            raise ValueError("At least one share must be above zero.")
        return shares

    @field_validator("rounds")
    @classmethod
    def _fewest_first(cls, rounds: tuple[int, int]) -> tuple[int, int]:
        if rounds[0] > rounds[1]:
            raise ValueError("The fewest rounds come first, then the most.")
        return rounds

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        self.check_length()
        self.check_period(self.model_fields_set)
        return self

    def text(self) -> str:
        """Return the JSON of the settings that differ from their defaults."""
        return self.model_dump_json(exclude_unset=True, indent=2) + "\n"


def read_recipe(file: Path) -> Recipe:
    """Return the recipe in a JSON file.

    Raises:
        SettingsError: the file does not exist, or a setting is unknown, missing or out of its range.
    """
    try:
        return Recipe.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"The recipe {file} cannot be read ({error.strerror}); check the path.") from None
    except ValidationError as error:
        problem = setting_problem(error, Recipe.model_fields)
        if problem is None:
            field = invalid_fields(error)[0]
            problem = f"{field.name}: {field.message}." if field.name else f"{field.message}."
        raise SettingsError(f"The recipe {file} is wrong: {problem}") from None
