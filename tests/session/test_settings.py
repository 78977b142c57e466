"""Settings of a session: one value that is complete wherever it is copied."""

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
    written, again = session(), session()
    written.settings = settings
    again.load_prompts(written.save_prompts(tmp_path / "a.prompts.json"))
    assert again.settings == settings


def test_fields_of_the_file_are_those_of_the_session() -> None:
    assert list(SettingsEntry.model_fields) == [field.name for field in fields(SessionSettings)]
    assert read_settings(SettingsEntry()) == DEFAULTS == session().settings


def test_settings_that_the_format_does_not_know_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(settings: Any) -> dict[str, Any]:
        return asdict(settings) | {"smooth": True}

    monkeypatch.setattr("medsam_app.session.prompt_schema.asdict", more)
    with pytest.raises(ValidationError, match="smooth"):
        settings_entry(DEFAULTS)


def test_settings_are_a_value() -> None:
    with pytest.raises(FrozenInstanceError):
        DEFAULTS.refine = False  # type: ignore[misc]
    with pytest.raises(SettingsError, match="overlap must be 'later' or 'earlier'; got 'both'"):
        replace(DEFAULTS, overlap="both")  # type: ignore[arg-type]
    assert hash(replace(DEFAULTS)) == hash(DEFAULTS)


def test_undo_leaves_settings_alone() -> None:
    mine = session()
    mine.add_object("organ")
    mine.settings = replace(mine.settings, refine=False, overlap="earlier")
    before = mine.settings
    assert mine.undo() and mine.settings == before
    assert mine.redo() and mine.settings == before
