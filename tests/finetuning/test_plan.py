"""Plan of a fine-tuning run: fields, and error messages for faulty plans."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medsam_app.errors import AdapterError, MedsamError, ModelError, SettingsError
from medsam_app.finetuning.plan import Plan, make_plan, read_plan, read_settings

FIELDS: dict[str, Any] = {"labels": {1: "lump"}, "spacing": 1.5, "window": (48, 48, 32), "steps": 200}


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    plan = Plan(**FIELDS, clip=(-150.0, 250.5), settings={"bottleneck": 16}, datasets=("a", "b"), seed=2**60)
    file = tmp_path / "plan.json"
    file.write_text(plan.text())
    assert read_plan(file) == plan
    assert read_plan(file).labels == {1: "lump"}
    assert not plan.differences(read_plan(file))
    assert plan.model_copy(update={"batch": 6}).differences(plan) == ["batch: 4, here 6"]


def test_progress_follows_from_steps_or_time() -> None:
    counted = Plan(**FIELDS, validate_steps=50)
    assert counted.done(100, 1e6) == 0.5
    assert counted.validations(149, 1e6) == 2
    timed = Plan(**FIELDS | {"steps": None, "minutes": 10}, validate_minutes=2)
    assert timed.done(10**6, 150) == 0.25
    assert timed.validations(10**6, 250) == 2
    assert timed.done(1, 1e4) == 1
    assert timed.validates
    assert not Plan(**FIELDS, validate_steps=0).validates
    assert Plan(**FIELDS, validate_steps=0).validations(1000, 0) == 0


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"learning_rat": 1}, SettingsError, "Did you mean 'learning_rate'?"),
        ({"minutes": 3}, SettingsError, "Exactly one of 'minutes' and 'steps'"),
        ({"steps": None}, SettingsError, "Exactly one of 'minutes' and 'steps'"),
        ({"window": (48, 48, 40)}, SettingsError, "multiple of 16; got 40"),
        ({"window": (48, 48, 1024)}, SettingsError, "less than or equal to 512"),
        ({"base": "sam3d_vit_b"}, SettingsError, "multiples of 32; 'window' is 48 x 48 x 32"),
        ({"base": "medsam_vit_b"}, SettingsError, "take one of sam3d_tiny, sam3d_medsam, sam3d_vit_b"),
        ({"base": "3dsam_adapter_vit_b"}, SettingsError, "cannot be taught"),
        ({"base": "sam3d_tine"}, ModelError, "Did you mean 'sam3d_tiny'?"),
        ({"adapter": "spatia"}, AdapterError, "Did you mean 'spatial'?"),
        ({"settings": {"rank": 4}}, AdapterError, "there is no 'rank'"),
        ({"labels": {}}, SettingsError, "'labels'"),
        ({"labels": {0: "background"}}, SettingsError, "greater than or equal to 1"),
        ({"clip": (5, 5)}, SettingsError, "lowest intensity, then the highest"),
        ({"clip": (float("nan"), 5)}, SettingsError, "finite"),
        ({"spacing": float("inf")}, SettingsError, "finite"),
        ({"spacing": 0}, SettingsError, "greater than 0"),
        ({"rounds": (4, 2)}, SettingsError, "the fewest, then the most"),
        ({"micro_batch": 9}, SettingsError, "'micro_batch' is a part of 'batch'"),
        ({"held_out": 0.9}, SettingsError, "less than 0.9"),
        ({"held_out": 0}, SettingsError, "greater than 0"),
        ({"cached": True, "decoder": False, "automatic": False}, SettingsError, "With 'cached'"),
    ],
)
def test_a_faulty_plan_is_refused(wrong: dict[str, Any], kind: type[MedsamError], message: str) -> None:
    with pytest.raises(kind) as refusal:
        make_plan(FIELDS | wrong)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON"),
        ("[1, 2]", "JSON object"),
        ('{"batch": 8', "JSON"),
        ('{"batsh": 8}', "Did you mean 'batch'?"),
    ],
)
def test_a_faulty_settings_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"settings\.json") as refusal:
        read_settings(file)
    assert message in str(refusal.value)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(tmp_path / "nowhere.json")


def test_some_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"batch": 4, "window": [32, 32, 32], "clip": None}))
    assert read_settings(file) == {"batch": 4, "window": [32, 32, 32], "clip": None}
    assert make_plan(FIELDS | read_settings(file)).window == (32, 32, 32)


def test_plans_are_free_of_torch() -> None:
    script = "import sys, medsam_app.finetuning.plan; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
