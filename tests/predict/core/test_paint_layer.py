"""Paint over a model's mask: the newest prompt wins, locked voxels stay, and undo and replay work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsam_app.errors import PromptError, PromptFileError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch
from medsam_app.io.volume import Volume
from medsam_app.predict.core.paint_layer import Layer
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import Bits, Paint, Point
from medsam_app.session.session import Session

SHAPE = (30, 26, 18)
#: Flipped, permuted and anisotropic.
AFFINE = np.array([[0, -1.2, 0, 3], [1.5, 0, 0, -8], [0, 0, -3.0, 20], [0, 0, 0, 1]])


def bits(*corners: tuple[int, int]) -> Bits:
    """Return the bits of a block, given (start, stop) along each axis."""
    start, stop = zip(*corners, strict=True)
    bits_ = Bits.from_patch(Patch(start, np.ones(np.subtract(stop, start), dtype=bool)), SHAPE)
    assert bits_ is not None
    return bits_


def click(i: int, j: int, k: int, positive: bool = True) -> Point:
    return Point(coordinates=(i, j, k), positive=positive)


def painted(*prompts) -> np.ndarray:
    """Return the (i, j, k) layer over an empty mask."""
    return Layer(prompts, SHAPE).over(Patch.empty()).to_array(SHAPE)


@pytest.fixture
def session() -> Session:
    at = np.indices(SHAPE)
    ball = sum(((a - m) * mm) ** 2 for a, m, mm in zip(at, (15, 13, 9), (1.5, 1.2, 3.0), strict=True)) < 12**2
    array = np.where(ball, 200, 20).astype(np.int16) + np.random.default_rng(0).integers(
        -8, 8, SHAPE, np.int16
    )
    return Session(Volume(array=array, grid=Grid(SHAPE, AFFINE)), VolumePredictor(refine=False))


def test_bits_round_trip() -> None:
    rng = np.random.default_rng(1)
    patch = rng.random((7, 5, 4)) > 0.7
    bits_ = Bits.from_patch(Patch((3, 2, 1), patch), SHAPE)
    assert bits_ is not None
    volume_mask = np.zeros(SHAPE, dtype=bool)
    volume_mask[3:10, 2:7, 1:5] = patch
    assert (bits_.to_array() == volume_mask).all()
    assert Bits.from_patch(Patch((0, 0, 0), np.zeros((3, 3, 3), dtype=bool)), SHAPE) is None


def test_the_newest_word_wins() -> None:
    brush = Paint(what="brush", inside=bits((2, 8), (2, 8), (2, 8)))
    eraser = Paint(what="eraser", outside=bits((5, 12), (2, 8), (2, 8)))
    assert painted(brush, eraser).sum() == 3 * 6 * 6
    assert painted(eraser, brush).sum() == 6 * 6 * 6
    # A contradicting click clears only the connected part around it.
    other = Paint(what="brush", inside=bits((20, 24), (20, 24), (10, 14)))
    assert painted(brush, other, click(3, 3, 3, positive=False)).sum() == 4**3
    assert painted(brush, other, click(3, 3, 3)).sum() == 6**3 + 4**3
    assert painted(brush, click(3, 3, 3, positive=False), brush).sum() == 6**3


def test_locked_voxels_stay() -> None:
    lock = Paint(
        what="lock", inside=bits((4, 8), (4, 8), (5, 6)), outside=bits((0, 4), (0, 26), (5, 6)), locked=True
    )
    brush = Paint(what="brush", inside=bits((0, 10), (0, 10), (4, 7)))
    layer = painted(lock, brush, click(5, 5, 5, positive=False))
    assert layer[4:8, 4:8, 5].all() and not layer[:4, :, 5].any()
    assert layer[0:10, 0:10, 4].all()
    assert layer[8:10, 0:10, 5].all()  # this voxel is not locked


def test_paint_is_laid_over_the_model(session: Session) -> None:
    owner = session.add_object("ball")
    session.add_prompt(owner.id, click(15, 13, 9))
    before = session.prediction(owner.id)
    assert before is not None
    bare = before.mask
    session.add_prompt(owner.id, Paint(what="brush", inside=bits((0, 3), (0, 3), (0, 3))))
    session.add_prompt(owner.id, Paint(what="eraser", outside=bits((15, 30), (0, 26), (0, 18))))
    prediction = session.prediction(owner.id)
    assert prediction is not None
    expected = bare.copy()
    expected[:3, :3, :3] = True
    expected[15:] = False
    assert (prediction.mask == expected).all()
    assert prediction.unmet == (0,)  # the click is on an erased voxel
    # Later clicks change the model's mask, but not the painted voxels.
    session.add_prompt(owner.id, click(10, 13, 9))
    later = session.prediction(owner.id)
    assert later is not None
    assert later.mask[:3, :3, :3].all() and not later.mask[15:].any()
    for _ in range(3):
        session.undo()
    again = session.prediction(owner.id)
    assert again is not None and (again.mask == bare).all()


def test_an_object_of_paint_alone(session: Session) -> None:
    owner = session.add_object("drawn")
    session.add_prompt(owner.id, Paint(what="eraser", outside=bits((0, 3), (0, 3), (0, 3))))
    assert session.prediction(owner.id) is None
    session.add_prompt(owner.id, Paint(what="brush", inside=bits((5, 9), (5, 9), (5, 9))))
    prediction = session.prediction(owner.id)
    assert prediction is not None and prediction.voxels == 64 and prediction.mask[5:9, 5:9, 5:9].all()
    assert (session.label_map() == prediction.mask).all()


def test_a_locked_slice_refuses_clicks(session: Session) -> None:
    owner = session.add_object("ball")
    session.add_prompt(owner.id, click(15, 13, 9))
    session.add_prompt(owner.id, Paint(what="lock", inside=bits((0, 30), (0, 26), (9, 10)), locked=True))
    with pytest.raises(PromptError, match="locked"):
        session.add_prompt(owner.id, click(2, 2, 9, positive=False))
    session.delete_prompt(owner.id, 1)
    session.add_prompt(owner.id, click(2, 2, 9, positive=False))


def test_prompt_files_hold_it(session: Session, tmp_path: Path) -> None:
    owner = session.add_object("ball")
    session.add_prompt(owner.id, click(15, 13, 9))
    session.add_prompt(
        owner.id,
        Paint(what="fill", inside=bits((0, 3), (1, 3), (0, 3)), outside=bits((9, 11), (9, 11), (9, 11))),
    )
    session.add_prompt(owner.id, Paint(what="lock", outside=bits((0, 30), (0, 26), (3, 4)), locked=True))
    path = session.save_prompts(tmp_path / "x.prompts.json")
    before, mask = session.objects, session.label_map()
    session.clear(owner.id)
    session.load_prompts(path)
    assert session.objects[0].prompts == before[0].prompts
    assert (session.label_map() == mask).all()
    broken = path.read_text()
    where = broken.index('"packed": "')
    (tmp_path / "broken.prompts.json").write_text(broken[: where + 11] + "AAAA" + broken[where + 15 :])
    with pytest.raises(PromptFileError, match="damaged"):
        session.load_prompts(tmp_path / "broken.prompts.json")
