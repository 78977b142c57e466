"""Sessions: undo of every change, refusal of invalid input, and masks."""

from __future__ import annotations

import random
import subprocess
import sys
import threading

import numpy as np
import pytest

from medsam_app.errors import PromptError, SettingsError
from medsam_app.io.volume import Volume
from medsam_app.prompts.types import Box, MaskPrompt, Point
from medsam_app.session.history import History
from medsam_app.session.label_set import Label
from medsam_app.session.objects import PALETTE, next_colour
from medsam_app.session.session import Session

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def small_volume() -> Volume:
    """Return a volume of 32 x 28 x 20 voxels with two bright balls."""
    i, j, k = np.ogrid[:32, :28, :20]
    array = np.random.default_rng(0).normal(0, 8, (32, 28, 20))
    array[((i - 9) ** 2 + (j - 13) ** 2 + (k - 10) ** 2) < 36] += 150
    array[((i - 23) ** 2 + (j - 13) ** 2 + (k - 10) ** 2) < 36] += 300
    return Volume.from_array(array.astype(np.float32), AFFINE)


@pytest.fixture
def session() -> Session:
    return Session(small_volume())


@pytest.fixture(scope="module")
def predictor():
    from medsam_app.predict.predictor import VolumePredictor

    return VolumePredictor(device="cpu")


CLICK = Point(coordinates=(9, 13, 10))


@pytest.mark.slow
def test_session_needs_no_torch():
    code = "import sys, medsam_app.session.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_new_object_is_the_first_unused_label_of_the_label_set(session):
    session.labels = (Label("liver", 7, "#d55e00", False), Label("lesion", 9, "#56b4e9"))
    first = session.add_object()
    assert (first.name, first.label, first.colour, first.may_overlap) == ("liver", 7, "#d55e00", False)
    session.rename(first.id, "spleen")  # its value is still in use
    assert session.add_object("cyst").label == 1
    assert session.add_object().name == "lesion"
    last = session.add_object()
    assert (last.name, last.label) == ("object 4", 2)


def test_defaults_are_distinct(session):
    objects = [session.add_object() for _ in range(40)]
    for attribute in ("id", "name", "label", "colour"):
        assert len({getattr(item, attribute) for item in objects}) == 40
    assert [item.label for item in objects[:3]] == [1, 2, 3]
    assert objects[0].colour == PALETTE[0]
    assert session.selected == objects[-1]


def test_free_labels_and_colours_are_reused(session):
    first, _second = session.add_object(), session.add_object()
    session.delete_object(first.id)
    third = session.add_object()
    assert (third.label, third.colour) == (first.label, first.colour)
    assert third.id != first.id and third.name not in {item.name for item in session.objects[:-1]}


def test_colours_never_run_out():
    taken: list[str] = []
    for _ in range(100):
        taken.append(next_colour(taken))
    assert len(set(taken)) == 100


@pytest.mark.parametrize("label", [0, -1, 65536, 1.0, True, "3"])
def test_labels_out_of_range_are_refused(session, label):
    with pytest.raises(SettingsError, match="from 1 to 65535"):
        session.add_object(label=label)
    assert session.objects == () and not session.can_undo


def test_names_and_labels_in_use_are_refused(session):
    liver, lesion = session.add_object("liver", label=5), session.add_object("lesion", label=65535)
    before = session.objects
    for call in (
        lambda: session.add_object("liver"),
        lambda: session.add_object(label=5),
        lambda: session.rename(lesion.id, " liver "),
        lambda: session.set_label(lesion.id, 5),
    ):
        with pytest.raises(SettingsError, match=r"already"):
            call()
    for call in (
        lambda: session.rename(liver.id, "  "),
        lambda: session.rename(liver.id, "a\nb"),
        lambda: session.rename(liver.id, "x" * 101),
        lambda: session.set_colour(liver.id, "red"),
        lambda: session.set_colour(liver.id, "#12345"),
    ):
        with pytest.raises(SettingsError):
            call()
    assert session.objects == before
    assert session.rename(liver.id, "liver").name == "liver"  # an object may keep its name


def test_clicks_outside_are_refused_and_change_nothing(session):
    item = session.add_object()
    session.add_prompt(item.id, CLICK)
    session.undo()
    before = (session.objects, session.undo_text, session.redo_text)
    for prompt in (
        Point(coordinates=(32, 0, 0)),
        Box(lower=(0, 0, 0), upper=(3, 3, 20)),
        MaskPrompt.from_array(np.ones((3, 3, 3))),
    ):
        with pytest.raises(PromptError, match="image"):
            session.add_prompt(item.id, prompt)
    assert (session.objects, session.undo_text, session.redo_text) == before  # redo is still possible


def test_unknown_objects_and_prompts_are_refused(session):
    item = session.add_object("liver")
    with pytest.raises(PromptError, match=r"no object 'o9'.*'o1' \(liver\)"):
        session.add_prompt("o9", CLICK)
    session.add_prompt(item.id, CLICK)
    for index in (1, -1):
        with pytest.raises(PromptError, match="1 prompts"):
            session.delete_prompt(item.id, index)


def test_any_prompt_can_be_deleted_or_moved(session):
    item = session.add_object()
    clicks = [Point(coordinates=(n, 1, 1)) for n in range(5)]
    for click in clicks:
        session.add_prompt(item.id, click)
    session.delete_prompt(item.id, 2)
    assert session.get(item.id).prompts == (*clicks[:2], *clicks[3:])
    moved = Point(coordinates=(9, 9, 9), positive=False)
    session.replace_prompt(item.id, 0, moved)
    assert session.get(item.id).prompts == (moved, clicks[1], *clicks[3:])
    assert len(session.get(item.id).times) == 4
    session.undo()
    session.undo()
    assert session.get(item.id).prompts == tuple(clicks)
    session.clear(item.id)
    assert session.get(item.id).prompts == () and session.undo_text == f"clear {item.name}"


def test_undo_and_redo_describe_and_select_the_change(session):
    liver, spleen = session.add_object("liver"), session.add_object("spleen")
    session.add_prompt(liver.id, CLICK)
    session.select(spleen.id)
    assert session.undo_text == "add positive click to liver" and not session.can_redo
    assert session.undo()
    assert session.selected.id == liver.id and session.redo_text == "add positive click to liver"
    session.delete_object(liver.id)
    assert not session.can_redo  # a new change discards the undone ones
    assert session.selected.id == spleen.id
    session.undo()
    assert session.selected.id == liver.id


def test_nothing_to_undo(session):
    assert session.undo() is False and session.redo() is False
    assert session.undo_text is None and session.redo_text is None


def test_changes_without_effect_are_not_steps(session):
    item = session.add_object("liver", colour="#AABBCC")
    steps = session.undo_text
    session.rename(item.id, "liver")
    session.set_colour(item.id, "#aabbcc")
    session.clear(item.id)
    assert session.undo_text == steps


@pytest.mark.parametrize("seed", range(5))
def test_any_sequence_of_changes_is_undone_and_redone_exactly(session, seed):
    rng = random.Random(seed)

    def change():
        ids = [item.id for item in session.objects]
        kinds = ["add", "click", "click", "click", "box", "rename", "label", "colour", "delete", "drop"]
        kind = rng.choice(kinds)
        if kind == "add" or not ids:
            return session.add_object()
        item = session.get(rng.choice(ids))
        place = (rng.uniform(0, 31), rng.uniform(0, 27), rng.uniform(0, 19))
        if kind == "box":
            return session.add_prompt(item.id, Box(lower=place, upper=(5, 5, 5)))
        if kind == "rename":
            return session.rename(item.id, f"name {rng.random()}")
        if kind == "label":
            free = set(range(1, 200)) - {item.label for item in session.objects}
            return session.set_label(item.id, rng.choice(sorted(free)))
        if kind == "colour":
            return session.set_colour(item.id, f"#{rng.randrange(1 << 24):06x}")
        if kind == "delete":
            return session.delete_object(item.id)
        if kind == "drop" and item.prompts:
            return session.delete_prompt(item.id, rng.randrange(len(item.prompts)))
        return session.add_prompt(item.id, Point(coordinates=place, positive=rng.random() < 0.5))

    states = [session.objects]
    for _ in range(60):
        change()
        if session.objects != states[-1]:
            states.append(session.objects)
    for state in reversed(states[:-1]):
        assert session.undo() and session.objects == state
    assert not session.can_undo
    for state in states[1:]:
        assert session.redo() and session.objects == state
    assert not session.can_redo


def test_threads_do_not_lose_changes(session):
    ids = [session.add_object().id for _ in range(4)]

    def work(object_id):
        for n in range(50):
            session.add_prompt(object_id, Point(coordinates=(n % 30, 1, 1)))

    threads = [threading.Thread(target=work, args=(i,)) for i in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(item.prompts) for item in session.objects] == [50] * 4
    steps = 0
    while session.undo():
        steps += 1
    assert steps == 204


def test_history_discards_only_undone_states():
    history = History(0)
    for n in (1, 2, 3):
        history.push(n, f"to {n}")
    history.undo()
    history.push(9, "to 9")
    assert history.state == 9 and not history.redo()
    assert [history.undo() and history.state for _ in range(3)] == [2, 1, 0]
    assert not history.undo() and history.state == 0


def test_without_a_locating_prompt_there_is_no_mask(predictor):
    session = Session(small_volume(), predictor)
    item = session.add_object()
    assert session.prediction(item.id) is None
    session.add_prompt(item.id, Point(coordinates=(9, 13, 10), positive=False))
    assert session.prediction(item.id) is None
    assert session.label_map().max() == 0


def test_without_a_model_there_is_a_message(session):
    item = session.add_object()
    session.add_prompt(item.id, CLICK)
    with pytest.raises(PromptError, match="no model"):
        session.prediction(item.id)


def test_undo_restores_the_mask_without_encoding(predictor):
    session = Session(small_volume(), predictor)
    item = session.add_object()
    session.add_prompt(item.id, CLICK)
    first = session.prediction(item.id)
    session.add_prompt(item.id, Point(coordinates=(14, 13, 10), positive=False))
    second = session.prediction(item.id)
    assert first.mask[9, 13, 10] and not second.mask[14, 13, 10]
    session.undo()
    restored = session.prediction(item.id)
    np.testing.assert_array_equal(restored.mask, first.mask)
    assert restored.encoded == 0 and restored.score == first.score
    session.redo()
    np.testing.assert_array_equal(session.prediction(item.id).mask, second.mask)


def test_later_objects_cover_earlier_ones(predictor):
    volume = small_volume()
    whole, part = np.zeros(volume.shape, bool), np.zeros(volume.shape, bool)
    whole[4:15, 8:19, 5:16] = True
    part[7:10, 10:14, 8:11] = True
    for overlap, owner in (("later", 2), ("earlier", 7)):
        session = Session(volume, predictor, overlap=overlap)
        organ, lesion = session.add_object("organ", label=7), session.add_object("lesion", label=2)
        session.add_prompt(organ.id, MaskPrompt.from_array(whole))
        session.add_prompt(lesion.id, MaskPrompt.from_array(part))
        labels = session.label_map()
        assert (labels[part] == owner).all() and (labels[whole & ~part] == 7).all()
        assert ((labels > 0) == whole).all()
        assert session.label_names == {7: "organ", 2: "lesion"}
        ((first, second, shared),) = session.overlaps()
        assert (first.name, second.name, shared) == ("organ", "lesion", part.sum())


def test_unknown_overlap_is_refused(session):
    with pytest.raises(SettingsError, match="'later' or 'earlier'"):
        Session(session.volume, overlap="both")  # type: ignore[arg-type]
