"""Colours that mean something on the planes are told apart, and from objects, with any colour vision."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from medsam_app.session.objects import PALETTE

PANEL = Path(__file__).parents[3] / "medsam_app" / "browser" / "static" / "compare_panel.js"
#: Machado, Oliveira and Fernandes (2009), no cone of a kind at all: on linear red, green, blue.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def seen(colour: tuple[float, ...], vision: str) -> np.ndarray:
    """CIELAB of a colour (red, green, blue to 255) as it is seen."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(VISION[vision] @ linear, 0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(value)


def apart(a: tuple[float, ...], b: tuple[float, ...], vision: str) -> float:
    return float(deltaE_ciede2000(seen(a, vision), seen(b, vision)))


@pytest.mark.parametrize("vision", VISION)
def test_what_compare_draws_is_no_object_and_told_apart(vision: str) -> None:
    found = re.findall(r"(ours|theirs|both): \[(\d+), (\d+), (\d+), ", PANEL.read_text(encoding="utf-8"))
    colours = {name: tuple(map(float, rgb)) for name, *rgb in found}
    assert set(colours) == {"ours", "theirs", "both"}
    assert min(apart(a, b, vision) for a, b in combinations(colours.values(), 2)) > 12
    objects = [tuple(float(int(text[at : at + 2], 16)) for at in (1, 3, 5)) for text in PALETTE]
    # 10 is plain at a glance; 1 can just be seen. Sky blue and orange, the first of the palette, had 0.
    assert min(apart(a, b, vision) for a in (colours["ours"], colours["theirs"]) for b in objects) > 9
