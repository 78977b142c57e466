"""Length of a run as a time or a number of steps, for every kind of settings."""

from __future__ import annotations

import pytest

from medsam_app.finetuning.plan import Plan
from medsam_app.pretraining.recipe import Recipe
from medsam_app.training.run_settings import RunSettings, TimeUnit

PLAN = {"labels": {1: "liver"}, "spacing": 1.0, "window": (32, 32, 32)}
RECIPE = {"shares": {"synthetic": 1}, "windows": [(16, 1)], "learning_rate": 0.01}


class Days(RunSettings):
    """Settings with only the required fields."""

    TIME = TimeUnit("days", 86400, "{:.1f} of {:g} days")

    days: float | None = None
    steps: int | None = None
    validate_minutes: float = 60.0
    validate_steps: int = 10


@pytest.mark.parametrize(
    ("settings", "seconds", "text"),
    [
        (Plan(**PLAN, minutes=10), 150.0, "step 7, 2.5 of 10 min"),
        (Recipe(**RECIPE, hours=2), 1800.0, "step 7, 0.50 of 2.00 h"),
        (Days(days=4), 86400.0, "step 7, 1.0 of 4 days"),
    ],
)
def test_a_time_is_counted_in_its_unit(settings: RunSettings, seconds: float, text: str) -> None:
    assert settings.progress_text(7, seconds) == text
    assert settings.done(10**6, seconds) == 0.25
    assert settings.done(0, 1e9) == 1.0
    period = settings.validate_minutes * 60
    assert [settings.validations(10**6, period * n + 1) for n in range(4)] == [0, 1, 2, 3]
    assert settings.validates and not settings.model_copy(update={"validate_minutes": 0}).validates


def test_steps_ignore_the_time() -> None:
    settings = Days(steps=40)
    assert settings.progress_text(7, 1e9) == "step 7 of 40"
    assert settings.done(10, 1e9) == 0.25
    assert [settings.validations(step, 1e9) for step in (9, 10, 25)] == [0, 1, 2]
    assert not settings.model_copy(update={"validate_steps": 0}).validates


def test_the_length_is_given_once_and_the_period_in_its_unit() -> None:
    for wrong in (Days(), Days(days=1, steps=1)):
        with pytest.raises(ValueError, match="Exactly one of 'days' and 'steps'"):
            wrong.check_length()
    Days(days=1).check_length()
    Days(days=1).check_period({"validate_minutes"})
    with pytest.raises(ValueError, match=r"'validate_minutes' does not go with .* give 'validate_steps'"):
        Days(steps=1).check_period({"validate_minutes"})


def test_fields_keep_the_order_of_their_json() -> None:
    assert list(Plan.model_fields)[:12] == [
        "base", "adapter", "settings", "decoder", "labels", "spacing", "window", "clip", "minutes", "steps",
        "batch", "micro_batch",
    ]  # fmt: skip
    assert list(Recipe.model_fields)[:5] == ["seed", "hours", "steps", "shares", "windows"]
