"""Base settings of a training run, free of torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict


class TimeUnit(NamedTuple):
    """Unit of a run's length, if the length is a time.

    Attributes:
        field: name of the field that holds the length.
        seconds: seconds in one unit.
        progress: format of the elapsed time and the total time, both in the unit.
    """

    field: str
    seconds: int
    progress: str


class RunSettings(BaseModel):
    """Base of the settings of a training run, whose length is either a time or a number of steps.

    A subclass declares the unit of time, and the fields, in the order in which they appear in its JSON.

    Attributes:
        steps: length as a number of updates; None if the length is a time.
        validate_minutes: training time between two validations if the length is a time; 0 for none.
        validate_steps: updates between two validations if the length is a number of updates; 0 for none.
        save_minutes: time between two saves of the run's state.
        learning_rate: peak learning rate, reached after the warm-up.
        warmup_steps: updates over which the learning rate rises.
        ema: decay of the running average of the trained tensors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    TIME: ClassVar[TimeUnit]

    if TYPE_CHECKING:
        steps: int | None
        validate_minutes: float
        validate_steps: int
        save_minutes: float
        learning_rate: float
        warmup_steps: int
        ema: float

    @property
    def duration(self) -> float | None:
        """Length in the unit of `TIME`; None if it is a number of steps."""
        duration: float | None = getattr(self, self.TIME.field)
        return duration

    def check_length(self) -> None:
        """Check that the length is given exactly once.

        Raises:
            ValueError: both a time and a number of steps are given, or neither.
        """
        if (self.duration is None) == (self.steps is None):
            raise ValueError(f"Exactly one of '{self.TIME.field}' and 'steps' says how long the run is.")

    def check_period(self, given: Collection[str]) -> None:
        """Check that the period of validation is in the unit of the length.

        Args:
            given: names of fields that the user set.

        Raises:
            ValueError: the period that does not apply is among them.
        """
        valid, invalid = "validate_minutes", "validate_steps"
        if self.steps is not None:
            valid, invalid = invalid, valid
        if invalid in given:
            raise ValueError(f"'{invalid}' does not go with the length of this run; give '{valid}'.")

    def done(self, step: int, seconds: float) -> float:
        """Return the fraction of the run that is done after some steps and seconds, from 0 to 1."""
        if self.duration:
            return min(1.0, seconds / (self.duration * self.TIME.seconds))
        return min(1.0, step / (self.steps or 1))

    def progress_text(self, step: int, seconds: float) -> str:
        """Return 'step 12 of 400', or 'step 12, ' followed by the time if the length is a time."""
        if self.duration is None:
            return f"step {step} of {self.steps}"
        return f"step {step}, {self.TIME.progress.format(seconds / self.TIME.seconds, self.duration)}"

    def validations(self, step: int, seconds: float) -> int:
        """Return the number of validations due so far, without the one before the first step."""
        elapsed, period = (
            (seconds, self.validate_minutes * 60) if self.duration else (float(step), self.validate_steps)
        )
        return int(elapsed // period) if period else 0

    @property
    def validates(self) -> bool:
        """Whether the run has validations."""
        return (self.validate_minutes if self.duration else self.validate_steps) > 0

    def differences(self, other: Self) -> list[str]:
        """Return a text such as 'hours: 3.0, here 5.0' for each field in which the other settings differ."""
        here, there = self.model_dump(), other.model_dump()
        return [f"{name}: {there[name]}, here {here[name]}" for name in here if here[name] != there[name]]
