"""End-to-end test of the index page of a batch, opened from disk in a browser."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from medsam_app.atomic import save_whole
from medsam_app.batch.index_page import IndexRow, index_page
from tests.e2e.page import PATIENCE

pytestmark = pytest.mark.browser

EVIL = "z <img src=x onerror='document.title=1'> #?.nii.gz"
SHOWN = "() => [...document.querySelectorAll('main .card:not([hidden])')].map((card) => card.dataset.case)"
CURRENT = "() => document.querySelector('main .card.current')?.dataset.case"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return twelve cases: one failed, one with a warning, one too large, one slow, one hostile name."""
    (tmp_path / "thumbs").mkdir()
    rows = []
    for number in range(12):
        case = EVIL if number == 11 else f"case{number}.nii.gz"
        picture = f"thumbs/{case.replace('/', ' ')}.png"
        stored = io.BytesIO()
        Image.new("RGB", (488, 160), (20 * number, 90, 90)).save(stored, format="png")
        (tmp_path / picture).write_bytes(stored.getvalue())
        if number == 2:
            rows.append(IndexRow(case=case, outcome="failed", sentence="The file is cut short."))
            continue
        rows.append(
            IndexRow(
                case=case,
                outcome="done",
                sentence="Sides may be swapped." if number == 3 else "",
                thumbnail=picture,
                volumes_ml={"liver": 4000.0 if number == 5 else 1500.0 + 10 * number, "spleen": 200 - number},
                seconds=90.0 if number == 7 else 5 + 0.1 * number,
            )
        )
    save_whole(tmp_path / "index.html", index_page(rows, title="Batch", facts={}))
    return tmp_path


def opened(context, folder: Path, complaints: list[str]):
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto((folder / "index.html").as_uri())
    return page


def test_a_person_finds_what_is_wrong_and_takes_the_list_along(context, folder: Path) -> None:
    complaints: list[str] = []
    page = opened(context, folder, complaints)
    names = [EVIL if n == 11 else f"case{n}.nii.gz" for n in range(12)]
    assert page.evaluate(SHOWN) == names
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth === 488)")

    page.click("[data-filter=failed]")
    assert page.evaluate(SHOWN) == ["case2.nii.gz"]
    page.click("[data-filter=warnings]")
    assert page.evaluate(SHOWN) == ["case3.nii.gz", "case5.nii.gz"]
    page.click("[data-filter=unusual]")
    assert page.evaluate(SHOWN) == ["case5.nii.gz"]
    page.click("[data-filter=all]")
    page.fill("#search", "SIDES swapped")
    assert page.evaluate(SHOWN) == ["case3.nii.gz"]
    page.fill("#search", "#?")
    assert page.evaluate(SHOWN) == [EVIL]
    page.fill("#search", "")

    page.select_option("#sort", label="seconds")
    assert page.evaluate(SHOWN)[0] == "case7.nii.gz"
    page.select_option("#sort", label="ml of liver")
    assert page.evaluate(SHOWN)[0] == "case5.nii.gz"
    page.select_option("#order", "up")
    assert page.evaluate(SHOWN)[:2] == ["case0.nii.gz", "case1.nii.gz"]
    assert page.evaluate(SHOWN)[-2:] == ["case5.nii.gz", "case2.nii.gz"]  # the failed case has no volume
    page.select_option("#sort", label="name")
    assert page.evaluate(SHOWN) == names  # case10 after case9

    page.evaluate("() => document.activeElement.blur()")
    keyboard = page.keyboard
    for key, at in [("j", 0), ("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowDown", 5), ("ArrowUp", 1)]:
        keyboard.press(key)
        assert page.evaluate(CURRENT) == names[at], key
    keyboard.press("f")
    keyboard.press("Enter")
    assert page.locator("dialog .card h2").inner_text() == names[1]
    assert page.locator("dialog img").bounding_box()["width"] > 1000
    for _ in range(10):
        keyboard.press("j")
    assert page.locator("dialog .card h2").inner_text() == EVIL
    keyboard.press("f")
    assert page.locator("dialog .card.flagged").count() == 1
    keyboard.press("Escape")
    assert page.evaluate(CURRENT) == EVIL and page.locator("dialog[open]").count() == 0
    keyboard.press("k")
    keyboard.press("f")
    keyboard.press("f")
    keyboard.press("/")
    keyboard.type("fj")  # letters typed in the search field are not shortcuts
    assert page.input_value("#search") == "fj" and page.evaluate(SHOWN) == []

    # After reopening, the flags are restored; another page in the folder has its own flags.
    page = opened(context, folder, complaints)
    page.click("[data-filter=flagged]")
    assert page.evaluate(SHOWN) == [names[1], EVIL]
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "flagged.txt"
    assert Path(download.value.path()).read_text("utf-8") == f"{names[1]}\n{EVIL}\n"
    (folder / "other.html").write_bytes((folder / "index.html").read_bytes())
    page.goto((folder / "other.html").as_uri())
    assert page.inner_text("#flags") == "0" and page.is_disabled("#save")
    assert page.title() == "Batch" and complaints == []


def test_a_phone_shows_one_column_and_fingers_do_what_keys_do(chromium, folder: Path) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    context.set_default_timeout(PATIENCE)
    page = opened(context, folder, [])
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("main .card").nth(1).bounding_box()["x"] == 10
    page.locator("main .picture").first.click()
    page.click("dialog [data-action=next]")
    page.click("dialog [data-action=flag]")
    page.click("dialog [data-action=close]")
    assert page.locator("main .card.flagged").get_attribute("data-case") == "case1.nii.gz"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert dark != page.evaluate("getComputedStyle(document.body).backgroundColor")
    context.close()
