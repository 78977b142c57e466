"""End-to-end tests of uploading folders of DICOM slices: picked, dropped, with two series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.page import Page
from tests.support.dicom_files import write_series

pytestmark = pytest.mark.browser

SLICES = np.arange(40 * 36 * 24, dtype=np.uint16).reshape(40, 36, 24) % 2000


@pytest.fixture
def page(opened):
    yield opened
    # The browser itself logs an error for each response with status 422.
    assert not [message for message in opened.complaints if "422" not in message]


@pytest.fixture
def series(tmp_path) -> Path:
    """Return a folder with slices without file extensions, a hidden file and a text file."""
    folder = write_series(tmp_path / "CT thorax" / "slices", SLICES)
    for path in folder.iterdir():
        path.rename(path.with_suffix(""))
    (folder / ".DS_Store").write_bytes(b"\0" * 100)
    (folder / "readme.txt").write_text("hello")
    return tmp_path / "CT thorax"


def drop(page: Page, *paths: Path) -> None:
    """Drop files from disk on the page as a file manager does."""
    session = page.page.context.new_cdp_session(page.page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})


def is_open(page: Page, name: str, voxels: np.ndarray) -> None:
    page.page.wait_for_function("(name) => medsamViewer.volume.name === name", arg=name)
    page.settle()
    assert page.ask("() => medsamViewer.volume.file_shape") == list(voxels.shape)
    for ijk in ([1, 2, 3], [30, 20, 10]):
        value = page.ask("(ijk) => medsamViewer.image.value(...medsamViewer.geometry.toRas(ijk))", ijk)
        assert value == int(voxels[tuple(ijk)]) - 1024


def test_a_folder_is_picked(page, series):
    page.page.click("[data-id=open]")
    with page.page.expect_file_chooser() as choosing:
        page.page.click("[data-id=choose-folder]")
    choosing.value.set_files(series)
    is_open(page, "CT thorax", SLICES)


def test_a_folder_is_dropped_and_its_upload_is_shown(page, series):
    page.ask("""() => {
        window.updates = [];
        const { progress } = medsamViewer;
        const update = progress.update.bind(progress);
        progress.update = (text, fraction, ...rest) => {
            updates.push([text, fraction]);
            update(text, fraction, ...rest);
        };
    }""")
    drop(page, series)
    is_open(page, "CT thorax", SLICES)
    updates = page.ask("() => updates")
    # 24 slices and a text file; hidden files are not sent.
    assert ["Uploading CT thorax (25 files)", 1] in updates
    assert page.page.locator(".medsam.dropping").count() == 0


def test_many_loose_slices_are_dropped(page, series):
    drop(page, *sorted((series / "slices").glob("0*")))
    is_open(page, "dicom_slices", SLICES)


def test_one_of_two_series_is_chosen(page, series):
    second = SLICES[:, :, :12] + 5
    write_series(series / "second", second, series="1.2.3.5", SeriesDescription="with contrast")
    drop(page, series)
    chooser = page.page.get_by_role("dialog", name="Which series?")
    chooser.locator(".file", has_text="with contrast").click()
    is_open(page, "CT thorax", second)


def test_a_folder_without_slices_is_a_sentence(page, tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "a.txt").write_text("hello")
    drop(page, folder)
    page.page.locator(".toast.error").wait_for()
    assert "'letters' holds no DICOM images (found: 1 .txt file(s))" in page.toast()
