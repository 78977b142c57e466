"""Settings that every training run has, above all its length. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict


class TimeUnit(NamedTuple):
    """Unit of a run's length where it is a time.

    Attributes:
        field: name of the field that holds the length.
        seconds: in one unit.
        progress: format of the elapsed time and the whole length, both in the unit.
    """

    field: str
    seconds: int
    progress: str


class RunSettings(BaseModel):
    """Base of the settings of a training run, whose length is either a time or a number of steps.

    A subclass declares the fields, since their order is that of its JSON, and the unit of time.

    Attributes:
        steps: length as a number of updates; None where the length is a time.
        validate_minutes: training time between two validations of a run whose length is a time; 0 for none.
        validate_steps: updates between two validations of a run whose length is a number of them; 0 for none.
        save_minutes: time between two saves of the run's state.
        learning_rate: at its highest, after the warm-up.
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
        """Length as a time, in the unit of `TIME`; None where it is a number of steps."""
        duration: float | None = getattr(self, self.TIME.field)
        return duration

    def check_length(self) -> None:
        """Check that the length is given once.

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
        right, other = "validate_minutes", "validate_steps"
        if self.steps is not None:
            right, other = other, right
        if other in given:
            raise ValueError(f"'{other}' does not go with the length of this run; give '{right}'.")

    def done(self, step: int, seconds: float) -> float:
        """Return the fraction of the run that is done, from 0 to 1, by the steps and seconds so far."""
        if self.duration:
            return min(1.0, seconds / (self.duration * self.TIME.seconds))
        return min(1.0, step / (self.steps or 1))

    def progress_text(self, step: int, seconds: float) -> str:
        """Return 'step 12 of 400', or 'step 12, ' and the time for a run whose length is a time."""
        if self.duration is None:
            return f"step {step} of {self.steps}"
        return f"step {step}, {self.TIME.progress.format(seconds / self.TIME.seconds, self.duration)}"

    def validations(self, step: int, seconds: float) -> int:
        """Return how many validations are due by then, not counting the one before the first step."""
        at, period = (
            (seconds, self.validate_minutes * 60) if self.duration else (float(step), self.validate_steps)
        )
        return int(at // period) if period else 0

    @property
    def validates(self) -> bool:
        """Whether the run is validated at all."""
        return (self.validate_minutes if self.duration else self.validate_steps) > 0

    def differences(self, other: Self) -> list[str]:
        """Return 'hours: 3.0, here 5.0' for each field whose value differs in the other settings."""
        own, others = self.model_dump(), other.model_dump()
        return [f"{name}: {others[name]}, here {own[name]}" for name in own if own[name] != others[name]]
