"""Colours of the comparison: distinct from each other and from objects with any colour vision."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from medsam_app.session.objects import PALETTE

PANEL = Path(__file__).parents[3] / "medsam_app" / "browser" / "static" / "compare_panel.js"
#: Machado, Oliveira and Fernandes (2009), with one cone type missing; for linear red, green, blue.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def perceived(colour: tuple[float, ...], vision: str) -> np.ndarray:
    """Return the CIELAB values, shape (3,), of a colour (red, green, blue from 0 to 255) as perceived."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(VISION[vision] @ linear, 0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(value)


def difference(a: tuple[float, ...], b: tuple[float, ...], vision: str) -> float:
    """Return the CIEDE2000 difference of two colours as perceived."""
    return float(deltaE_ciede2000(perceived(a, vision), perceived(b, vision)))


@pytest.mark.parametrize("vision", VISION)
def test_comparison_colours_are_distinct_from_each_other_and_from_objects(vision: str) -> None:
    matches = re.findall(r"(ours|theirs|both): \[(\d+), (\d+), (\d+), ", PANEL.read_text(encoding="utf-8"))
    colours = {name: tuple(map(float, rgb)) for name, *rgb in matches}
    assert set(colours) == {"ours", "theirs", "both"}
    assert min(difference(a, b, vision) for a, b in combinations(colours.values(), 2)) > 12
    objects = [tuple(float(int(text[i : i + 2], 16)) for i in (1, 3, 5)) for text in PALETTE]
    # A difference of 10 is visible at a glance, 1 barely. Sky blue and orange are the first colours of the
    # palette, so they would give 0.
    assert min(difference(a, b, vision) for a in (colours["ours"], colours["theirs"]) for b in objects) > 9
