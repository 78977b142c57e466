"""Download, installation and verification of weights, with a misbehaving server."""

from __future__ import annotations

import os
import resource
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from medsam_app.errors import ModelError, SaveError
from medsam_app.models import download as store
from medsam_app.models.table import MODELS, ModelEntry
from tests.support import web_server as web
from tests.support.web_server import CONTENT, left

pytestmark = pytest.mark.usefixtures("downloads")


def with_checkpoint(entry: ModelEntry, **changes: object) -> ModelEntry:
    return replace(entry, checkpoint=replace(entry.checkpoint, **changes))


@pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)
def test_table_is_complete(entry: ModelEntry) -> None:
    checkpoint = entry.checkpoint
    assert entry.summary and entry.reference and entry.expects and entry.normalisation.text
    assert checkpoint.licence and checkpoint.page and checkpoint.file == Path(checkpoint.file).name
    if checkpoint.url is not None or checkpoint.embedded:
        assert checkpoint.size and checkpoint.sha256 and len(bytes.fromhex(checkpoint.sha256)) == 32
    if checkpoint.url is not None:
        assert checkpoint.url.startswith("https://") and checkpoint.url.endswith(f"/{checkpoint.file}")
    elif checkpoint.package is not None:
        assert checkpoint.size and checkpoint.sha256 and checkpoint.package.path.endswith(checkpoint.file)
    elif not checkpoint.embedded:
        assert checkpoint.by_hand and checkpoint.sha256 is None
        for refuse in (store.download, store.verified_path, lambda e: store.install(e, Path(__file__))):
            with pytest.raises(ModelError, match="--weights FILE") as caught:
                refuse(entry)
            assert checkpoint.page in str(caught.value) and checkpoint.by_hand in str(caught.value)
    normalisation = entry.normalisation
    assert len(normalisation.mean) == len(normalisation.std) and all(s > 0 for s in normalisation.std)
    assert normalisation.clip is None or normalisation.clip[0] < normalisation.clip[1]


def test_embedded_weights_are_those_of_the_table() -> None:
    embedded = [entry for entry in MODELS.values() if entry.checkpoint.embedded]
    assert [entry.name for entry in embedded] == ["sam3d_tiny", "sam3d_medsam"]
    for entry in embedded:
        assert store.verified_path(entry).stat().st_size == entry.checkpoint.size < 12_000_000
        assert store.download(entry).how == "there"
        with pytest.raises(ModelError, match="part of the package"):
            store.install(entry, Path(__file__))


def test_models_in_3d_and_by_slices_share_files() -> None:
    for size in ("vit_b", "vit_l", "vit_h"):
        paths = {store.checkpoint_path(MODELS[f"{kind}_{size}"]) for kind in ("sam", "sam3d")}
        assert len(paths) == 1


def test_folder(downloads: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.cache_folder() == downloads.parent
    monkeypatch.setenv("MEDSAM_APP_HOME", "~/weights")
    assert store.cache_folder() == Path.home() / "weights"
    monkeypatch.delenv("MEDSAM_APP_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.cache_folder().name == "medsam_app" and store.cache_folder().is_absolute()


def test_download_then_nothing_to_do(downloads: Path, entry: ModelEntry, site: web.Site) -> None:
    seen: list[tuple[str, int, int]] = []
    assert store.installed_state(entry) == "no"
    done = store.download(entry, progress=lambda *step: seen.append(step))
    assert (done.how, done.replaced, done.path) == ("downloaded", "", store.checkpoint_path(entry))
    assert done.path.read_bytes() == CONTENT and left(downloads) == ["small.pth"]
    for what in ("Downloading", "Verifying"):
        counts = [count for activity, count, size in seen if activity == what and size == len(CONTENT)]
        assert counts == sorted(counts) and counts[-1] == len(CONTENT)
    ordinary = done.path.with_name("ordinary")
    ordinary.touch()
    assert done.path.stat().st_mode == ordinary.stat().st_mode
    assert store.download(entry).how == "there" and site.ranges == [""]
    assert store.installed_state(entry) == "yes" and store.verified_path(entry) == done.path


@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"?", CONTENT[:1000], b""], ids=["byte", "cut", "empty"])
def test_damaged_file_is_noticed_and_replaced(downloads: Path, entry: ModelEntry, damaged: bytes) -> None:
    path = store.checkpoint_path(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    with pytest.raises(ModelError, match="medsam-app models download sam_vit_b"):
        store.verified_path(entry)
    done = store.download(entry)
    assert done.how == "downloaded" and "instead of" in done.replaced
    assert path.read_bytes() == CONTENT and left(downloads) == ["small.pth"]


def test_broken_connection_is_taken_up_where_it_broke(entry: ModelEntry, site: web.Site) -> None:
    site.answers = [web.cut(0.5), web.part]
    assert store.download(entry).path.read_bytes() == CONTENT
    first, second = site.ranges
    assert first == "" and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(CONTENT) // 2


def test_attempts_that_get_further_are_not_counted(entry: ModelEntry, site: web.Site) -> None:
    site.answers = [
        *(web.cut(share) for share in (0.31, 0.6, 0.9)),
        web.status(503),
        web.status(503),
        web.part,
    ]
    assert store.download(entry).path.read_bytes() == CONTENT
    assert len(site.ranges) == 6


def test_begins_again_where_the_server_cannot_send_a_part(entry: ModelEntry, site: web.Site) -> None:
    site.answers = [web.cut(0.5), web.status(416), web.cut(0.7), web.whole]
    assert store.download(entry).path.read_bytes() == CONTENT
    assert [bool(asked) for asked in site.ranges] == [False, True, False, True]


@pytest.mark.parametrize("code", [500, 503, 429, 408])
def test_a_server_that_recovers(entry: ModelEntry, site: web.Site, code: int) -> None:
    site.answers = [web.status(code), web.status(code), web.whole]
    assert store.download(entry).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "expected", "requests"),
    [
        (web.status(404), "the server answers 404", 1),
        (web.status(403), "the server answers 403", 1),
        (web.status(500), "the server answers 500", 3),
        (web.cut(0.5), "the connection breaks again and again", 4),
        (web.truncated, "the file ends after 450000 of 900000 bytes", 4),
        (web.shorter, "a file of 450000 bytes now", 1),
        (web.page, "a file of 27 bytes now", 1),
        (web.endless, "more than the 900000 bytes", 1),
        (web.silence, "the server does not answer", 3),
        (web.hang, "the server does not answer", 4),
        (web.other, "has sha256", 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_failures_say_what_to_do_and_leave_nothing(
    downloads: Path, entry: ModelEntry, site: web.Site, answer: web.Answer, expected: str, requests: int
) -> None:
    site.answers = [answer]
    with pytest.raises(ModelError) as caught:
        store.download(entry)
    message = str(caught.value)
    assert expected in message and site.url in message and left(downloads) == []
    assert len(site.ranges) == requests
    if answer is not web.other:
        assert "'medsam-app models download sam_vit_b --file small.pth'" in message
        assert "small.pth" in message and str(store.checkpoint_path(entry).parent) in message


def test_offline(downloads: Path, entry: ModelEntry) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/small.pth"
    with pytest.raises(ModelError, match=f"from {url}: there is no connection; download small.pth"):
        store.download(with_checkpoint(entry, url=url))
    assert left(downloads) == []


def test_failure_keeps_no_wrong_file_in_place_of_a_damaged_one(entry: ModelEntry, site: web.Site) -> None:
    path = store.checkpoint_path(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[::-1])
    site.answers = [web.status(404)]
    with pytest.raises(ModelError):
        store.download(entry)
    with pytest.raises(ModelError, match="sha256"):
        store.verified_path(entry)


@pytest.mark.parametrize("what", ["Downloading", "Verifying"])
def test_interrupt_leaves_nothing(downloads: Path, entry: ModelEntry, what: str) -> None:
    def stop(activity: str, done: int, size: int) -> None:
        if activity == what and done > size // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.download(entry, progress=stop)
    assert left(downloads) == []


def test_what_killed_programs_left_is_swept(downloads: Path, entry: ModelEntry) -> None:
    folder = store.checkpoint_path(entry).parent
    folder.mkdir(parents=True)
    for name, age in {"small.pth-old": 90_000, "small.pth-new": 60, "small-old": 90_000}.items():
        draft = folder / f".saving-{name}" / "small.pth"
        draft.parent.mkdir()
        draft.touch()
        for path in (draft, draft.parent):
            os.utime(path, (time.time() - age,) * 2)
    store.download(entry)
    assert left(downloads) == [".saving-small-old", ".saving-small.pth-new", "small.pth"]


def test_no_room(entry: ModelEntry, site: web.Site) -> None:
    with pytest.raises(SaveError, match=r"needs 1000000000\.00 GB, but .* left; make room"):
        store.download(with_checkpoint(entry, size=10**18))
    assert site.ranges == []


def test_disk_that_fills_up(downloads: Path, entry: ModelEntry) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(SaveError, match=r"could not be written to .*; make room"):
            store.download(entry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(downloads) == []


@pytest.mark.parametrize("home", ["a file", "/sys/medsam_app"])
def test_folder_that_cannot_be_written(
    entry: ModelEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MEDSAM_APP_HOME", str(tmp_path / home))
    source = tmp_path / "source.pth"
    source.write_bytes(CONTENT)
    for bring in (store.download, lambda e: store.install(e, source)):
        with pytest.raises(SaveError, match="set MEDSAM_APP_HOME to another folder"):
            bring(entry)


def test_install_a_file(downloads: Path, entry: ModelEntry, site: web.Site, tmp_path: Path) -> None:
    source = tmp_path / "from a stick.bin"
    source.write_bytes(CONTENT)
    done = store.install(entry, source)
    assert done.how == "copied" and done.path.read_bytes() == CONTENT == source.read_bytes()
    assert store.install(entry, source).how == "there"
    assert store.install(entry, done.path).how == "there"
    done.path.write_bytes(CONTENT[::-1])
    assert "sha256" in store.install(entry, source).replaced
    assert left(downloads) == ["small.pth"] and site.ranges == []


def test_install_refuses_what_is_not_the_published_file(
    downloads: Path, entry: ModelEntry, tmp_path: Path
) -> None:
    source = tmp_path / "mine.pth"
    with pytest.raises(ModelError, match=r"There is no file .*mine\.pth"):
        store.install(entry, source)
    with pytest.raises(ModelError, match="There is no file"):
        store.install(entry, tmp_path)
    source.write_bytes(CONTENT[::-1])
    with pytest.raises(ModelError, match=r"mine\.pth' is not small\.pth.* it has sha256 .* instead of"):
        store.install(entry, source)
    source.write_bytes(CONTENT[:5])
    with pytest.raises(ModelError, match=r"has 5 bytes, but small\.pth.* has 900000; give that file, whole"):
        store.install(entry, source)
    with source.open("wb") as file:
        file.truncate(MODELS["sam_vit_l"].checkpoint.size)
    with pytest.raises(ModelError, match=r"it may be sam_vit_l_0b3195\.pth, of 'sam_vit_l'"):
        store.install(entry, source)
    assert left(downloads) == []


def test_nothing_is_verified_without_a_hash(entry: ModelEntry, tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes(CONTENT)
    path = store.install(entry, source).path
    unhashed = with_checkpoint(entry, sha256=None)
    for refuse in (store.verified_path, store.download, lambda e: store.install(e, source)):
        with pytest.raises(ModelError, match=r"no hash of small\.pth is published"):
            refuse(unhashed)
    assert path.read_bytes() == CONTENT
