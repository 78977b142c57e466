"""The code in docs/adapters.md runs, and its table is correct."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from medsam_app.adapters.adapter import COMPONENTS, Adapter
from medsam_app.adapters.attachment_points import find_attachment_points
from medsam_app.adapters.table import ADAPTER_KINDS, check_settings
from medsam_app.models.sam3d import build_sam3d_tiny

PAGE = (Path(__file__).parents[2] / "docs/adapters.md").read_text()


def test_the_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, names)
    assert names["adapters"].names == ["liver"] and names["adapters"].active is None
    assert names["model"].adapter_sha256 == ""
    assert isinstance(names["liver"], Adapter) and names["liver"].card.labels == {1: "liver"}
    assert "['liver'] liver " in capsys.readouterr().out


def test_the_table_of_kinds() -> None:
    rows = [
        [cell.strip(" `") for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if "arXiv" in row
    ]
    assert [row[0] for row in rows] == list(ADAPTER_KINDS)
    sites = find_attachment_points(build_sam3d_tiny())
    for name, adds, size, _, mergeable in rows:
        kind = ADAPTER_KINDS[name]
        assert adds[adds.index("(") :] in kind.paper
        assert mergeable == ("yes" if kind.mergeable else "no")
        with torch.device("meta"):
            part = COMPONENTS[name](sites, check_settings(name, {}))
        assert size == f"{4e-6 * sum(parameter.numel() for parameter in part.parameters()):.1f} MB"
