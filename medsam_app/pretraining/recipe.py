"""Recipe of a pretraining run: one small JSON file; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from medsam_app.errors import SettingsError, invalid_fields, setting_problem, unknown_name
from medsam_app.training.run_settings import RunSettings, TimeUnit

#: Where windows come from.
SHARES = ("real", "pseudo", "heads", "synthetic")

_Positive = Annotated[int, Field(ge=1)]
#: The encoder halves a window four times.
_Side = Annotated[int, Field(ge=16, multiple_of=16)]


class Recipe(RunSettings):
    """Settings of a training run.

    Attributes:
        hours: time after which the run is done, and the learning rate at a fiftieth; or
        steps: number of updates after which they are. A run counted in steps does not depend on the machine's
            speed, and one that was interrupted gives what it would have given.
        shares: relative frequency of the sources of windows.
        windows: (side in voxels, batch size) pairs, one drawn each step.
        rounds: fewest and most decodes an example.
        ema: decay of the running average of the weights, which is what gets exported.
        optimizer: 'adamw', or 'muon', which takes the kernels of linear layers and convolutions and leaves
            the rest to AdamW.
        only: train only parameters whose names begin with this; '' for all.
        validate_minutes: training time between two measurements of a run counted in hours; 0 for none.
        validate_steps: updates between two measurements of a run counted in steps; 0 for none.
        validation_windows: how many windows of each kind are measured.
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
    """The recipe in a JSON file.

    Raises:
        SettingsError: no such file, or a setting that is unknown, missing or out of its range.
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
