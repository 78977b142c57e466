"""Header of a saved baseline network: a round trip, and other headers are rejected."""

from __future__ import annotations

import json

import pytest

from medsam_app.finetuning.plan import Plan
from medsam_app.predict.baseline_file import BASELINE_NETS, read_header, write_header

PLAN = Plan(labels={2: "liver", 5: "spleen"}, spacing=1.5, window=(64, 32, 32), clip=(-100, 300), steps=3)


@pytest.mark.parametrize("name", BASELINE_NETS)
def test_a_header_is_read_back(name: str) -> None:
    read_name, plan = read_header(write_header(name, PLAN.model_dump_json()))
    assert read_name == name
    assert list(plan.labels.items()) == list(PLAN.labels.items())
    assert (plan.spacing, plan.window, plan.clip) == (PLAN.spacing, PLAN.window, PLAN.clip)


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "medsam_app adapter 1"},
        {"name": "resnet"},
        {"plan": "{"},
        {"plan": json.dumps({"labels": {}, "spacing": 1.0, "window": [64, 64, 64], "clip": None})},
        {"plan": json.dumps({"labels": {"1": "a"}, "spacing": 0.0, "window": [64, 64, 64], "clip": None})},
    ],
)
def test_another_header_is_refused(wrong: dict[str, str]) -> None:
    header = write_header("unet", PLAN.model_dump_json()) | wrong
    with pytest.raises(ValueError, match=r"network|validation error"):
        read_header(header)
    with pytest.raises(ValueError, match="network"):
        read_header({})
