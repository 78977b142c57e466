"""Options of a server: errors for invalid values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsam_app.browser.options import ServeOptions
from medsam_app.errors import AdapterError, ModelError, SettingsError, VolumeError
from medsam_app.predict.model_choice import ModelChoice


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            {"image": Path("x.nii")},
            VolumeError,
            "There is no file or folder x.nii; give the path of an image.",
        ),
        ({"roots": (Path(), Path("x"))}, SettingsError, "--root x is not a folder"),
        ({"worklist": Path("x")}, SettingsError, "--worklist x is not a folder; make it"),
        ({"model": ModelChoice(name="x")}, ModelError, "There is no model 'x'"),
        ({"model": ModelChoice(weights=Path("x"))}, ModelError, "There is no file of weights 'x'"),
        ({"model": ModelChoice(adapter=Path("x"))}, AdapterError, "There is no adapter file 'x'"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        ServeOptions(**values)
    assert message in str(raised.value)
