"""Options of an evaluation: one error per mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsam_app.errors import AdapterError, ModelError, SettingsError
from medsam_app.evaluate.options import EvaluateOptions
from medsam_app.predict.model_choice import ModelChoice


@pytest.mark.parametrize(
    ("clicks", "shown"), [(10, (1, 2, 3, 5, 10)), (4, (1, 2, 3, 4)), ((5, 1, 5), (1, 5)), ((7,), (7,))]
)
def test_shown_clicks(clicks: int | tuple[int, ...], shown: tuple[int, ...]) -> None:
    assert EvaluateOptions(clicks=clicks).shown == shown


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model": ModelChoice(name="sam3d_tinny")}, ModelError, "There is no model 'sam3d_tinny'"),
        ({"model": ModelChoice(weights=Path("x"))}, ModelError, "There is no file of weights 'x'"),
        ({"model": ModelChoice(adapter=Path("x"))}, AdapterError, "There is no adapter file 'x'"),
        ({"base": True}, SettingsError, "there is no adapter; give one"),
        ({"baselines": ("waker",)}, SettingsError, "There is no baseline 'waker'. Did you mean 'walker'?"),
        ({"first": "bax"}, SettingsError, "There is no first prompt 'bax'. Did you mean 'box'?"),
        ({"clicks": ()}, SettingsError, "At least one click an object is needed; got 0."),
        ({"clicks": (3, -1)}, SettingsError, "At least one click an object is needed; got -1."),
        ({"targets": (0.0,)}, SettingsError, "A target is a Dice above 0 and up to 1"),
        (
            {"tolerance": float("inf")},
            SettingsError,
            "The tolerance is a distance in mm, 0 or more; got inf.",
        ),
    ],
)
def test_invalid_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        EvaluateOptions(**values)
    assert message in str(raised.value)
