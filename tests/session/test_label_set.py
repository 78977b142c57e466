"""Label sets: equal results from CSV and JSON, and errors with line numbers."""

from __future__ import annotations

import json

import pytest

from medsam_app.errors import SettingsError
from medsam_app.session.label_set import Label, read_label_set
from medsam_app.session.objects import PALETTE

CSV = "name,label,colour,may_overlap\nliver,7,#AABBCC,no\nlesion,,,\n veins ,1,#000000,Yes\n"
EXPECTED = (
    Label("liver", 7, "#aabbcc", False),
    Label("lesion", 2, PALETTE[0], True),
    Label("veins", 1, "#000000", True),
)


def write(folder, name: str, text: str):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_json_give_the_same_labels(tmp_path):
    assert read_label_set(write(tmp_path, "a.csv", CSV)) == EXPECTED
    assert read_label_set(write(tmp_path, "b.csv", CSV.replace(",", ";"))) == EXPECTED
    rows = [
        {"name": "liver", "label": 7, "colour": "#aabbcc", "may_overlap": False},
        {"name": "lesion"},
        {"name": "veins", "label": 1, "colour": "#000000"},
    ]
    for content in (rows, {"labels": rows}):
        assert read_label_set(write(tmp_path, "c.json", json.dumps(content))) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,label\nliver,1\nliver,2\n", "line 3: There is already an object named 'liver'"),
        ("a.csv", "name,label\nliver,1\nspleen,1\n", "line 3: Label value 1 belongs to 'liver'"),
        ("a.csv", "name,label\nliver,x\n", "line 2: A label value is a whole number"),
        ("a.csv", "name,colour\nliver,red\n", "line 2: A colour is written"),
        ("a.csv", "name,may_overlap\nliver,perhaps\n", "'yes' or 'no'; got 'perhaps'"),
        ("a.csv", "title\nliver\n", "no column 'name'"),
        ("a.csv", "name,size\nliver,2\n", "'size' is not one of"),
        ("a.csv", "name\n", "holds 0 labels"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"objects": 3}', "is no label set"),
        ("a.json", '[{"name": "a", "label": true}]', "whole number"),
        ("a.csv", "name\n" + "x" * (2 << 20), "larger than"),
    ],
)
def test_invalid_label_sets_are_refused_with_a_message(tmp_path, name, text, message):
    with pytest.raises(SettingsError) as caught:
        read_label_set(write(tmp_path, name, text))
    assert message in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        read_label_set(tmp_path / "none.csv")
