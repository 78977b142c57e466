"""Settings of a session: a value that is always complete."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medsam_app.errors import SettingsError
from medsam_app.io.volume import Volume
from medsam_app.session.prompt_schema import SettingsEntry, read_settings, settings_entry
from medsam_app.session.session import Session
from medsam_app.session.settings import SessionSettings

DEFAULTS = SessionSettings(overlap="later", refine=True, by_label=False)
ALL = [
    SessionSettings(overlap=overlap, refine=refine, by_label=by_label)  # type: ignore[arg-type]
    for overlap, refine, by_label in product(("later", "earlier"), (True, False), (True, False))
]


def session() -> Session:
    return Session(Volume.from_array(np.zeros((4, 5, 6), np.float32), np.eye(4)))


@pytest.mark.parametrize("settings", ALL)
def test_prompt_files_hold_all_settings(settings: SessionSettings, tmp_path: Path) -> None:
    assert read_settings(settings_entry(settings)) == settings
    written, reopened = session(), session()
    written.settings = settings
    reopened.load_prompts(written.save_prompts(tmp_path / "a.prompts.json"))
    assert reopened.settings == settings


def test_file_and_session_have_the_same_fields() -> None:
    assert list(SettingsEntry.model_fields) == [field.name for field in fields(SessionSettings)]
    assert read_settings(SettingsEntry()) == DEFAULTS == session().settings


def test_settings_missing_in_the_format_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_another_field(settings: Any) -> dict[str, Any]:
        return asdict(settings) | {"smooth": True}

    monkeypatch.setattr("medsam_app.session.prompt_schema.asdict", with_another_field)
    with pytest.raises(ValidationError, match="smooth"):
        settings_entry(DEFAULTS)


def test_settings_are_immutable_and_hashable() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULTS.refine = False  # type: ignore[misc]
    with pytest.raises(SettingsError, match="overlap must be 'later' or 'earlier'; got 'both'"):
        replace(DEFAULTS, overlap="both")  # type: ignore[arg-type]
    assert hash(replace(DEFAULTS)) == hash(DEFAULTS)


def test_undo_does_not_change_settings() -> None:
    edited = session()
    edited.add_object("organ")
    edited.settings = replace(edited.settings, refine=False, overlap="earlier")
    before = edited.settings
    assert edited.undo() and edited.settings == before
    assert edited.redo() and edited.settings == before
