"""CT-like torso phantom: the bundled sample and the ground truth of tests.

Shapes are signed distances in mm (negative inside), deformed by smooth noise and painted one over another
with partial volume at their borders. A point-spread blur and correlated noise are applied last. World
coordinates are RAS+: x grows to the patient's right, y to the front, z to the head.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medsam_app.io.volume import Volume
from medsam_app.synthetic.canvas import Canvas, smooth_union

#: Names of the label values of the phantom. Voxels of the lesion do not belong to the liver.
LABEL_NAMES: dict[int, str] = {
    1: "liver",
    2: "spleen",
    3: "right kidney",
    4: "left kidney",
    5: "aorta",
    6: "stomach",
    7: "spine and ribs",
    8: "liver lesion",
    9: "gallbladder",
}
LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, AORTA, STOMACH, BONE, LESION, GALLBLADDER = LABEL_NAMES

SHAPE = (224, 160, 80)
SPACING = (1.5, 1.5, 3.0)
FAT, MUSCLE, BLOOD = -102.0, 58.0, 155.0


def torso_phantom(seed: int = 0) -> tuple[Volume, NDArray[np.uint8], dict[int, str]]:
    """Return a CT-like torso in portal-venous phase, from the lung bases to below the kidneys.

    Args:
        seed: each seed gives a different patient; the same seed gives the same voxels.

    Returns:
        The volume (224, 160, 80) in Hounsfield units (int16), 1.5 x 1.5 x 3 mm, LPS; its label map
        of the same shape (uint8, 0 = background); and the names of the label values.
    """
    # LPS order, as written by scanners: the first two axes are opposite to RAS.
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (168.0, 112.0, -121.5)
    canvas = Canvas.blank(SHAPE, affine, np.random.default_rng(seed))
    _paint_body(canvas)
    _paint_abdomen(canvas)
    _paint_vessels(canvas)
    _paint_chest(canvas)
    _paint_spine(canvas.part((-50, 50), (-100, 5), (-130, 130)))
    _paint_ribs(canvas)
    blurred = gaussian_filter(canvas.hu, (0.55, 0.55, 0.3), truncate=3)
    grain = gaussian_filter(canvas.rng.standard_normal(SHAPE, dtype=np.float32), (0.8, 0.8, 0.25), truncate=3)
    # Fewer photons cross the middle of the body, so noise is stronger there.
    strength = 8 + 6 * np.exp(-((canvas.x / 110) ** 2 + (canvas.y / 80) ** 2))
    blurred += grain * (strength / grain.std())
    array = np.clip(np.rint(blurred), -1024, 3071).astype(np.int16)
    return Volume.from_array(array, affine, modality="CT"), canvas.labels, dict(LABEL_NAMES)


def _paint_body(c: Canvas) -> None:
    """Paint table, skin, fat and muscles, and set the distance to the inside of the muscular wall."""
    bed = c.part((-170, 170), (-130, -95), (-130, 130))
    table = np.abs(bed.y + 113 - (bed.x / 48) ** 2) - 5
    bed.paint(np.maximum(table, np.abs(bed.x) - 155), 150.0)
    bed.paint(np.maximum(table + 3.2, np.abs(bed.x) - 153), -880.0)
    # A rounded rectangle instead of an ellipse: the back is flat on the table.
    width, depth = 151 + 4 * np.sin(c.z / 75), 97 + 3 * np.cos(c.z / 90)
    u, v = np.abs(c.x) / width, np.abs(c.y) / depth
    value = (u**2.4 + v**2.4) ** (1 / 2.4)
    skin = (value - 1) * np.minimum(width, depth) * (1 + 0.45 * u) + c.noise(120, 2)
    fat = 12 + 5 * np.clip(c.y / 100, -0.6, 1) - 0.04 * c.z + c.noise(90, 2)
    wall = skin + fat
    texture = c.noise(14, 7)
    c.paint(skin, 10.0)
    c.paint(skin + 2, FAT + texture)
    c.paint(wall, MUSCLE + texture)
    # Fat between the layers of the wall, only on the flanks, and the midline in front.
    flank = np.clip((np.abs(c.x) - 70) / 40, -1, 1)
    c.paint(np.abs(wall + 6 + c.noise(45, 1.2)) - 0.9 * flank, -50.0)
    c.paint(np.maximum(np.maximum(np.abs(c.x) - 4, wall + 1.5), 60 - c.y), -20.0)
    inner = wall + 12 + c.noise(70, 1.5) - 4 * flank
    c.paint(inner, FAT + 6 + texture)
    for side in (-1, 1):
        back = c.ellipsoid((side * 31, -71, 0), (29, 21, 400)) + c.noise(55, 1.8)
        c.paint(back, MUSCLE + 1.6 * texture)
        inner = np.maximum(inner, 2 - back)
        taper = np.clip((55 - c.z) / 150, 0.05, 1)
        psoas = c.tube(side * (27 + 14 * taper), -33 + 5 * taper, (19, 17)) + 19 * (1 - taper)
        c.paint(psoas + c.noise(60, 1), MUSCLE + 4 + texture)
    c.inner[:] = inner


def _paint_abdomen(c: Canvas) -> None:
    """Paint bowel, pancreas, stomach, spleen, liver with its lesion, gallbladder and kidneys."""
    _paint_bowel(c)
    p = c.part((-90, 80), (-25, 50), (-40, 45))
    lobules = p.noise(13, 1.6)
    pancreas = p.ellipsoid((-8, 11, 2), (60, 10, 15), tilt=0.3) + np.abs(p.x + 8) ** 2 / 260 + lobules
    p.paint(pancreas, 92 + 3 * lobules)
    _paint_left_side(c.part((-160, 10), (-100, 100), (-60, 115)))
    _paint_liver(c.part((-85, 150), (-100, 100), (-85, 125)))
    for side, low, label in ((1, -48.0, RIGHT_KIDNEY), (-1, -32.0, LEFT_KIDNEY)):
        x, y, z = centre = (side * (59 + c.jitter(2)), -36 + c.jitter(2), low + c.jitter(4))
        _paint_kidney(c.part((x - 50, x + 50), (y - 45, y + 45), (z - 75, z + 75)), side, centre, label)


def _paint_bowel(canvas: Canvas) -> None:
    """Paint loops of small bowel, and the colon with stool and gas on both sides."""
    for _ in range(16):
        x, y, z = centre = canvas.rng.uniform((-72, 14, -128), (72, 56, -18)).tolist()
        c = canvas.part((x - 50, x + 50), (y - 32, y + 32), (z - 40, z + 40))
        radii = c.rng.uniform((16, 11, 12), (34, 17, 22)).tolist()
        loop = c.ellipsoid(centre, radii, tilt=c.rng.uniform(-0.6, 0.6)) + c.noise(30, 1.8)
        loop = np.maximum(loop, c.inner + 3)
        gas = c.y > y + c.rng.uniform(4, 14)
        c.paint(loop, 85 + c.noise(12, 6))
        c.paint(loop + 3, np.where(gas, -900.0, c.rng.uniform(10, 45) + c.noise(9, 8)))
    for side in (-1, 1):
        c = canvas.part((-150, 0) if side < 0 else (0, 150), (-60, 60), (-130, 0))
        middle = side * (93 + 5 * np.sin(c.z / 30)), -2 - 12 * side + 8 * np.sin(c.z / 40)
        colon = c.tube(*middle, (19, 21)) + 2 * np.sin(c.z / 7 + side) + c.noise(22, 1.2)
        colon = np.maximum(np.maximum(colon, c.inner + 3), c.z + (38 if side > 0 else 12))
        stool = c.noise(9, 1)
        c.paint(colon, 75 + 5 * stool)
        c.paint(colon + 3, np.where((stool > 0.9) | (c.y > 14 - 12 * side), -820.0, 20 + 45 * stool))


def _paint_left_side(c: Canvas) -> None:
    texture = c.noise(13, 5)
    stomach = c.ellipsoid((-58 + c.jitter(3), 28, 34 + c.jitter(3)), (40, 37, 50), tilt=-0.25)
    stomach = np.maximum(stomach + c.noise(65, 3.5), c.inner + 5)
    c.paint(stomach, 78 + texture, label=STOMACH)
    # The patient is supine: air rises to the front, with a flat level.
    food = np.where(c.y > 38, -985.0, 14 + 2 * texture)
    c.paint(stomach + 4.5, food, label=STOMACH)
    spleen = c.ellipsoid((-93 + c.jitter(2), -34, 32 + c.jitter(4)), (36, 45, 52), tilt=-0.12)
    spleen = np.maximum(np.maximum(spleen + c.noise(55, 2.5), c.inner + 3), 4 - stomach)
    c.paint(spleen, 124 + 0.6 * texture, label=SPLEEN)


def _paint_liver(c: Canvas) -> None:
    texture = c.noise(13, 5)
    right = c.ellipsoid((66 + c.jitter(2), 2, 26 + c.jitter(4)), (62, 68, 78), tilt=0.08)
    left = c.ellipsoid((-4, 45, 46 + c.jitter(3)), (62, 25, 38), tilt=-0.2)
    liver = np.maximum(smooth_union(right, left, 22) + c.noise(75, 3.5), c.inner + 3)
    c.paint(liver - 1.5, FAT)
    c.paint(liver, 108 + 0.8 * texture + c.noise(80, 3), label=LIVER)
    # Veins are lines where two smooth noises are both near zero. Divided by the typical slope of the noise,
    # their values become distances in mm.
    for _ in range(2):
        first, second = c.noise(85, 1, count=5), c.noise(85, 1, count=5)
        line = np.sqrt(first**2 + second**2) * 85 / (2 * np.pi * 0.65) - 3.6
        c.paint(np.maximum(line, liver + 7), 165.0, label=LIVER)
    x, y, z = centre = (82 + c.jitter(8), 8 + c.jitter(10), 22 + c.jitter(10))
    p = c.part((x - 28, x + 28), (y - 28, y + 28), (z - 28, z + 28))
    lesion = p.ellipsoid(centre, (17, 15, 18)) + p.noise(26, 1.6)
    mottle = p.noise(9, 5)
    p.paint(lesion, 62 + mottle, label=LESION, edge=3)
    p.paint(lesion + 6, 34 + mottle, label=LESION, edge=4)
    p = c.part((15, 70), (10, 75), (-50, 10))
    gallbladder = p.ellipsoid((42, 45, -20), (15, 22, 19), tilt=0.2) + p.noise(40, 1.2)
    p.paint(gallbladder - 1.2, 70.0)
    p.paint(gallbladder, 9 + p.noise(13, 2), label=GALLBLADDER)


def _paint_kidney(c: Canvas, side: int, centre: tuple[float, float, float], label: int) -> None:
    x, y, z = centre
    kidney = c.ellipsoid(centre, (27, 24, 54), tilt=-0.22 * side) + c.noise(50, 1.6)
    # Hilum: fat and vessels enter medially and from the front.
    hilum = c.ellipsoid((x - side * 27, y + 9, z), (19, 12, 24), tilt=-0.22 * side) + c.noise(22, 1.4)
    texture = c.noise(13, 5)
    c.paint(kidney - 3, FAT)
    tissue = np.maximum(kidney, -hilum)
    c.paint(tissue, 192 + texture, label=label)
    pyramids = np.maximum(np.maximum(kidney + 7, -hilum + 4), 1.5 - np.abs(c.noise(24, 4)))
    c.paint(pyramids, 142 + texture, label=label, edge=3)
    vein = c.tube(x - side * 20, y + 9, (14, 4.5))
    c.paint(np.maximum(np.maximum(vein, np.abs(c.z - z) - 7), -kidney - 6), BLOOD - 10)


def _paint_vessels(canvas: Canvas) -> None:
    c = canvas.part((-40, 60), (-35, 45), (-130, 130))
    aorta = c.tube(-9 + 3 * np.sin(c.z / 45), 4 + 4 * np.cos(c.z / 70), (10.5, 10.5)) + 0.008 * c.z
    cava = c.tube(22 + 3 * np.sin(c.z / 50), 2 + 0.05 * c.z, (12.5, 9.5)) + c.noise(60, 0.8)
    c.paint(np.maximum(cava, c.z - 92), BLOOD - 18)
    c.paint(aorta - 1, MUSCLE - 10)
    c.paint(aorta, BLOOD + c.noise(40, 3), label=AORTA)
    c.paint(c.ellipsoid((-6, 24, 6), (4.5, 16, 4.5)), BLOOD)


def _paint_chest(canvas: Canvas) -> None:
    """Paint the lungs above the domes of the diaphragm, and the heart between them."""
    c = canvas.part((-170, 170), (-130, 130), (-40, 130))
    heart = np.maximum(c.ellipsoid((-24, 26, 122), (58, 47, 47), tilt=-0.2) + c.noise(70, 2), c.inner + 4)
    middle = smooth_union(c.tube(2.0, 15.0, (30, 75)), heart - 7, 18)
    middle = np.minimum(middle, c.tube(0.0, -50.0, (29, 45)))  # the spine and the tissue behind it
    top = np.where(c.x > 0, 88.0, 80.0)
    fall = np.hypot((np.abs(c.x) - 60) / 66, (c.y - 8) / 66)
    dome = (top - 60 * np.clip(fall, 0, 1.25) ** 2.4 - c.z) * 0.62 + c.noise(80, 2.5)
    lungs = np.maximum(np.maximum(c.inner + 2, dome), 3 - middle)
    lungs = np.where(c.labels == AORTA, 9.0, lungs).astype(np.float32)
    vessels = np.clip(c.noise(17, 1) - 1.15, 0, 1) * np.clip(c.noise(45, 1) + 1, 0, 1)
    c.paint(np.maximum(lungs - 3, c.inner - 1), MUSCLE + 10)
    c.paint(lungs, -845 + c.noise(30, 14) + 700 * np.clip(2.2 * vessels, 0, 1), edge=2.4)
    c.paint(heart - 4, FAT)
    c.paint(heart, 112.0)
    c.paint(heart + 11, BLOOD - 5)


def _paint_ribs(c: Canvas) -> None:
    """Paint the ribs in the wall; along the girth of the body, they slope down towards the front."""
    girth = np.arctan2(np.abs(c.x) / 1.5, -c.y)
    along = c.z + 46 * np.clip(girth - 0.35, 0, 3) ** 1.1 - 4
    period = 31.0
    across = along - period * np.rint(along / period)
    ribs = np.hypot(c.inner - 3.5, across * 0.62) - 4.6
    for end in ((girth - 2.45) * 70, (0.36 - girth) * 70, 12 - along):
        ribs = np.maximum(ribs, end)
    grain = c.noise(8, 28)
    c.paint(ribs, 640 + grain, label=BONE)
    c.paint(ribs + 2.6, 190 + 2 * grain, label=BONE, edge=2)


def _paint_spine(c: Canvas) -> None:
    """Paint vertebrae every 36 mm with discs, the spinal canal, arches and processes."""
    period = 36.0
    high = c.z - period * np.rint(c.z / period)
    bow = 3 * np.sin(c.z / 80)
    waist = 2.2 * np.cos(np.clip(high / 14, -1, 1) * np.pi / 2)
    column = c.tube(0.0, -27 + bow, (24, 17.5))
    c.paint(column + 1, 92.0)
    body = np.maximum(column + waist, np.abs(high) - 14)
    arch = np.maximum(np.abs(c.tube(0.0, -54 + bow, (13.5, 12.5))) - 3.6, np.abs(high + 3) - 10)
    process = np.maximum(c.tube(0.0, -76 + bow, (3.8, 13)), np.abs(high + 7) - 9)
    sides = np.maximum(c.tube(np.sign(c.x) * 26.0, -56 + bow, (17, 4.6)), np.abs(high) - 6)
    bone = smooth_union(smooth_union(body, arch, 3), smooth_union(process, sides, 3), 3) + c.noise(16, 0.5)
    c.paint(c.tube(0.0, -54 + bow, (11, 10)), 5.0)
    c.paint(c.tube(0.0, -54 + bow, (6, 5)), 42.0)
    grain = c.noise(8, 28)
    c.paint(bone, 480 + grain, label=BONE)
    c.paint(bone + 2.4, 165 + grain, label=BONE, edge=2.4)
