"""HTML page of a batch: hostile names stay text, links work, unusual cases are marked."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import pytest

from medsam_app.atomic import save_whole
from medsam_app.batch.index_page import IndexRow, index_page, unusual_volumes
from medsam_app.errors import SettingsError

HOSTILE = '<script>alert("1")</script>&\'"><img src=x onerror=alert(1)></article>'
#: File names that need correct URL encoding.
SPECIAL_NAMES = [
    "with space.png",
    "hash#1.png",
    "what?.png",
    "100%.png",
    "%41.png",
    "\"quotes'.png",
    "javascript:alert(1).png",
    "a:b.png",
    "Größe 肝臓.png",
    "back\\slash.png",
    "a&amp;b;c.png",
    "line\nbreak.png",
    "deep/er #2/x.png",
    b"latin \xe9.png".decode("utf-8", "surrogateescape"),
]


class Page(HTMLParser):
    """Parsed page: tags with attributes and text, for the page and for each card."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[dict[str, list]] = []
        self.words: list[str] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag == "article":
            self.cards.append({"attributes": dict(attrs), "words": [], "tags": []})
        if "article" in self.inside:
            self.cards[-1]["tags"].append((tag, dict(attrs)))
        if tag in {"meta", "img", "input"}:
            self.inside.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag, "tags are closed in the order they were opened"

    def handle_data(self, data: str) -> None:
        if "style" not in self.inside and "script" not in self.inside:
            self.words.append(data)
        if "article" in self.inside:
            self.cards[-1]["words"].append(data)


def kinds(page: Page) -> list[set[str]]:
    return [set(card["attributes"]["data-kinds"].split()) for card in page.cards]


def counts(page: Page) -> dict[str, str]:
    """Return the counts on the filter buttons, by filter name."""
    words = page.words[page.words.index("All ") :]
    return {words[n].strip(): words[n + 1] for n in range(0, 16, 2) if words[n + 1].isdigit()}


def test_hostile_names_stay_text() -> None:
    row = IndexRow(
        case=HOSTILE, outcome="done", sentence=HOSTILE, thumbnail=HOSTILE, output=HOSTILE,
        volumes_ml={HOSTILE: 2.0}, not_found=[HOSTILE], unmet=1,
    )  # fmt: skip
    text = index_page([row], title=HOSTILE, facts={HOSTILE: HOSTILE}, colours={HOSTILE: "#102030"})
    page = Page(text)
    assert not page.inside[1:], "every tag is closed"
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("img") == 1 and len(page.cards) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.cards[0]["attributes"]["data-case"] == HOSTILE
    assert page.cards[0]["words"].count(HOSTILE) == 3  # name, sentence, label
    assert page.words.count(HOSTILE) == 3 + 4  # title, heading, fact
    # No external resources, and no script but the page's own.
    assert not [a for _, a in page.tags for key in ("src", "href") if urlsplit(a.get(key) or "").scheme]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_links_to_files_with_special_characters(tmp_path: Path) -> None:
    rows = []
    for number, name in enumerate(SPECIAL_NAMES):
        for folder in ("thumbs", "."):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{folder} {number}")
        rows.append(IndexRow(case=name, outcome="done", thumbnail=f"thumbs/{name}", output=name))
    save_whole(tmp_path / "index.html", index_page(rows, title="t", facts={}))
    base = (tmp_path / "index.html").as_uri()
    page = Page((tmp_path / "index.html").read_text("utf-8"))
    for number, card in enumerate(page.cards):
        urls = [a.get("src") or a.get("href") for _, a in card["tags"] if "src" in a or "href" in a]
        for url, folder in zip(urls, ("thumbs", "."), strict=True):
            parts = urlsplit(urljoin(base, url))
            assert parts.scheme == "file" and not parts.query and not parts.fragment, url
            assert Path(os.fsdecode(unquote_to_bytes(parts.path))).read_text() == f"{folder} {number}"


def test_cases_are_counted_by_filter() -> None:
    rows = [
        IndexRow(case="fine", outcome="done", volumes_ml={"liver": 1500.0}),
        IndexRow(case="bad", outcome="failed", sentence="It is cut short."),
        IndexRow(case="warned", outcome="done", sentence="Sides may be swapped.", volumes_ml={"liver": 1400}),
        IndexRow(case="unmet", outcome="done", volumes_ml={"liver": 1450}, unmet=2),
        IndexRow(case="nothing", outcome="done", volumes_ml={"liver": 0}, not_found=["liver"]),
        IndexRow(case="before", outcome="skipped", sentence="Its mask is there.", volumes_ml={"liver": 1400}),
    ]
    page = Page(index_page(rows, title="t", facts={"model": "tiny", "adapter": ""}))
    assert kinds(page) == [
        {"all", "done"},
        {"all", "failed"},
        {"all", "done", "warnings"},
        {"all", "done", "warnings"},
        {"all", "done", "warnings", "empty"},
        {"all", "skipped"},
    ]
    assert counts(page) == {
        "All": "6", "Failed": "1", "With warnings": "3", "Empty": "1", "Done": "4", "Skipped": "1",
        "Flagged": "0",
    }  # fmt: skip
    assert "2 prompts not honoured" in page.cards[3]["words"]
    assert {"nothing found", "not found: liver"} <= set(page.cards[4]["words"])
    assert "tiny" in page.words and "adapter" not in page.words


def rows_of(volumes: list[float], label: str = "liver") -> list[IndexRow]:
    return [IndexRow(case=f"c{n}", outcome="done", volumes_ml={label: ml}) for n, ml in enumerate(volumes)]


def test_unusual_volumes_are_those_far_from_the_median() -> None:
    # Median 100, absolute deviations 0 1 1 2 2 3 3 4 and a large one: median deviation 2, scaled 2.9652.
    usual = [100.0, 99, 101, 98, 102, 97, 103, 96]
    just, beyond = 100 + 5 * 2.9652 - 0.01, 100 + 5 * 2.9652 + 0.01
    assert unusual_volumes(rows_of([*usual, just])) == [[]] * 9
    assert unusual_volumes(rows_of([*usual, beyond])) == [*[[]] * 8, ["liver"]]
    page = Page(index_page(rows_of([*usual, beyond]), title="t", facts={}))
    assert kinds(page)[-1] == {"all", "done", "unusual", "warnings"}
    assert "unusual volume: liver (median 100 ml)" in page.cards[-1]["words"]
    assert counts(page)["Unusual volume"] == "1"


def test_few_cases_and_missing_labels_are_never_unusual() -> None:
    assert unusual_volumes(rows_of([10, 10.1, 10.2, 9.9, 9.8, 10, 500])) == [[]] * 7
    assert unusual_volumes(rows_of([10, 10.1, 10.2, 9.9, 9.8, 10, 500, 0])) == [[]] * 8
    assert unusual_volumes(rows_of([10, 10.1, 10.2, 9.9, 9.8, 10, 10, 500, 0])) == [
        *[[]] * 7, ["liver"], [],
    ]  # fmt: skip
    assert unusual_volumes(rows_of([10.0] * 9 + [10.0001, 12])) == [*[[]] * 10, ["liver"]]


def test_no_rows_and_a_wrong_colour() -> None:
    assert counts(Page(index_page([], title="t", facts={})))["All"] == "0"
    with pytest.raises(SettingsError, match="'#rrggbb'"):
        index_page([], title="t", facts={}, colours={"liver": "red;position:fixed"})
