"""Keyboard shortcuts: each key has one meaning and is shown in the help."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

KEYS = Path(__file__).parents[3] / "medsam_app" / "browser" / "static" / "keys.js"
ROW = re.compile(r'^  \["[^"]+", "(?P<shown>[^"]+)", "[^"]+", plain\((?P<keys>[^)]*)\)', re.M)


def test_each_key_has_one_meaning() -> None:
    rows = list(ROW.finditer(KEYS.read_text(encoding="utf-8")))
    assert len(rows) > 20
    keys = Counter(key for row in rows for key in re.findall(r'"([^"]+)"', row["keys"]))
    assert [key for key, count in keys.items() if count > 1] == []
    for row in rows:
        letters = [key.upper() for key in re.findall(r'"([a-z0-9])"', row["keys"])]
        assert [key for key in letters if key not in row["shown"].split()] == []
