"""HTML page of a batch's results: one card per case, outliers first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import numpy as np

from medsam_app.html_page import definitions, page
from medsam_app.session.objects import checked_colour

#: A volume is unusual if it is farther from the median than this many standard deviations, estimated from the
#: median absolute deviation. The second number is the minimum number of cases.
UNUSUAL, LEAST_CASES = 5.0, 8
#: Ratio of standard deviation to median absolute deviation for normally distributed values.
_DEVIATION = 1.4826
#: Lower bound of the estimated standard deviation of a label's volumes, as a share of their median.
_LEAST_SPREAD = 0.01
#: Filters in the order of their buttons, with the text of each button.
_FILTERS = {
    "all": "All",
    "failed": "Failed",
    "warnings": "With warnings",
    "empty": "Empty",
    "unusual": "Unusual volume",
    "done": "Done",
    "skipped": "Skipped",
}
#: Filters whose button appears only if a case matches.
_RARE = {"unusual", "skipped"}


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One case of a batch.

    Attributes:
        case: unique name, usually the path in the input folder.
        outcome: result of the case.
        sentence: the error of a failed case or the warnings of another, empty for none.
        thumbnail: path of its picture relative to the folder of the page, with '/', not percent-encoded.
        output: path of its mask, likewise.
        volumes_ml: volume in ml by label name, 0 for a label that was not found. A finished case without a
            volume above 0 is shown as empty.
        seconds: processing time; for a failed case it is displayed but not used for sorting.
        unmet: number of prompts that could not be honoured.
        not_found: names of the labels that were requested and not found.
    """

    case: str
    outcome: Literal["done", "failed", "skipped"]
    sentence: str = ""
    thumbnail: str | None = None
    output: str | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    unmet: int = 0
    not_found: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether a finished case has no labelled voxel."""
        return self.outcome == "done" and not any(ml > 0 for ml in self.volumes_ml.values())


class _Spread(NamedTuple):
    """Median and spread of the values of one kind."""

    median: float
    deviation: float
    cases: int

    @classmethod
    def of(cls, values: Iterable[float]) -> _Spread:
        """Return the spread of the positive values; a volume of zero means that the label was not found."""
        positive = np.array([value for value in values if value > 0])
        if not len(positive):
            return cls(0.0, 1.0, 0)
        median = float(np.median(positive))
        distance = float(np.median(np.abs(positive - median)))
        return cls(median, max(_DEVIATION * distance, _LEAST_SPREAD * median), len(positive))

    def far(self, value: float) -> float:
        return abs(value - self.median) / self.deviation


def unusual_volumes(rows: Sequence[IndexRow]) -> list[list[str]]:
    """Return for each row the labels whose volume is far from that of the other cases.

    A volume is far if its robust z-score, |volume - median| / (1.4826 x median absolute deviation), exceeds
    5. Cases in which a label was not found are ignored for this label, and at least 8 cases are required.
    """
    spreads = _spreads(rows)
    return [
        [
            label
            for label, ml in row.volumes_ml.items()
            if ml > 0 and spreads[label].cases >= LEAST_CASES and spreads[label].far(ml) > UNUSUAL
        ]
        for row in rows
    ]


def index_page(
    rows: Sequence[IndexRow],
    *,
    title: str,
    facts: Mapping[str, str],
    colours: Mapping[str, str] | None = None,
) -> str:
    """Return a page that is self-contained except for its pictures; write it with `save_whole`.

    The page counts, filters, searches and sorts cases. Keys move between cards, enlarge a card and flag it.
    The browser stores flags by the address of the page, and the page exports them as a list with one case per
    line.

    Args:
        rows: cases in their initial order.
        title: title of the page.
        facts: facts about the run, by name; shown at the end.
        colours: '#rrggbb' of labels by name, as in the thumbnails.

    Raises:
        SettingsError: a colour is invalid.
    """
    spreads, unusual = _spreads(rows), unusual_volumes(rows)
    durations = _Spread.of(row.seconds for row in rows if row.outcome != "failed")
    kinds = [_kinds(row, unusual_labels) for row, unusual_labels in zip(rows, unusual, strict=True)]
    dots = {
        label: f'<i style="background:{checked_colour(colour)}"></i>'
        for label, colour in (colours or {}).items()
    }
    cards = [
        _card(row, row_kinds, unusual_labels, spreads, durations, dots)
        for row, row_kinds, unusual_labels in zip(rows, kinds, unusual, strict=True)
    ]
    body = "\n".join(
        [
            f"<header><h1>{escape(title)}</h1>",
            _filters(kinds),
            _tools(list(spreads)),
            "</header>",
            f'<main id="cards">{"".join(cards)}</main>',
            _DIALOG,
            f"<footer>{_LEGEND}{definitions(facts)}</footer>",
        ]
    )
    style, script = (Path(__file__).with_suffix(suffix).read_text("utf-8") for suffix in (".css", ".js"))
    return page(title, body, style=style, images="'self' file: data:", script=script)


def _spreads(rows: Sequence[IndexRow]) -> dict[str, _Spread]:
    labels = dict.fromkeys(label for row in rows for label in row.volumes_ml)
    return {
        label: _Spread.of(row.volumes_ml[label] for row in rows if label in row.volumes_ml)
        for label in labels
    }


def _kinds(row: IndexRow, unusual: Sequence[str]) -> set[str]:
    """Return the filters that match a case."""
    kinds = {"all", row.outcome}
    if row.empty:
        kinds.add("empty")
    if unusual:
        kinds.add("unusual")
    warned = row.sentence and row.outcome == "done"  # the sentence of a skipped case is only its reason
    if row.outcome != "failed" and (warned or row.unmet or row.not_found or unusual):
        kinds.add("warnings")
    return kinds


def _filters(kinds: Sequence[set[str]]) -> str:
    counts = Counter(kind for row_kinds in kinds for kind in row_kinds)
    buttons = [
        f'<button type="button" data-filter="{kind}" aria-pressed="{str(kind == "all").lower()}">'
        f"{name} <b>{counts[kind]}</b></button>"
        for kind, name in _FILTERS.items()
        if counts[kind] or kind not in _RARE
    ]
    flagged = '<button type="button" data-filter="flagged" aria-pressed="false">Flagged '
    buttons.append(f'{flagged}<b id="flags">0</b></button>')
    return f'<nav aria-label="Filters">{"".join(buttons)}</nav>'


def _tools(labels: Sequence[str]) -> str:
    columns = ["seconds", *(f"ml of {label}" for label in labels)]
    options = "".join(f'<option value="{n}">{escape(name)}</option>' for n, name in enumerate(columns))
    return (
        '<div class="tools"><input id="search" type="search" placeholder="Search names and sentences" '
        'aria-label="Search names and sentences"><label>Sort by <select id="sort"><option value="">as run'
        f'</option><option value="name">name</option>{options}</select></label>'
        '<select id="order" aria-label="Order" disabled><option value="far">farthest from the median first'
        '</option><option value="down">largest first</option><option value="up">smallest first</option>'
        '</select><button type="button" id="save" disabled>Save the flagged as a list</button>'
        '<output id="shown"></output></div>'
    )


def _card(
    row: IndexRow,
    kinds: set[str],
    unusual: Sequence[str],
    spreads: Mapping[str, _Spread],
    durations: _Spread,
    dots: Mapping[str, str],
) -> str:
    seconds = None if row.outcome == "failed" else row.seconds
    numbers = [
        (durations, seconds),
        *((spread, row.volumes_ml.get(name)) for name, spread in spreads.items()),
    ]
    values = " ".join("-" if value is None else f"{value:.6g}" for _, value in numbers)
    deviations = " ".join("-" if value is None else f"{spread.far(value):.4g}" for spread, value in numbers)
    case = escape(row.case)
    parts = [
        f'<article class="card" tabindex="-1" data-case="{case}" data-kinds="{" ".join(sorted(kinds))}" '
        f'data-values="{values}" data-far="{deviations}">',
        f'<div class="name"><h2 title="{case}"><bdi>{case}</bdi></h2>'
        '<button type="button" data-action="flag" aria-pressed="false">Flag</button></div>',
    ]
    if row.thumbnail is not None:
        parts.append(
            '<button type="button" class="picture" data-action="enlarge" aria-label="Enlarge"><img '
            f'loading="lazy" decoding="async" alt="Slices of {case}" src="{_url(row.thumbnail)}"></button>'
        )
    marks = _marks(row, unusual, spreads)
    if marks:
        parts.append(
            '<p class="marks">'
            + "".join(f"<span{attributes}>{escape(text)}</span>" for text, attributes in marks)
        )
        parts.append("</p>")
    if row.sentence:
        parts.append(f'<p class="said" dir="auto">{escape(row.sentence)}</p>')
    if row.volumes_ml:
        sizes = [
            f"<span>{dots.get(name, '')}<bdi>{escape(name)}</bdi> {_number(ml)} ml</span>"
            for name, ml in row.volumes_ml.items()
        ]
        parts.append(f'<p class="volumes">{"".join(sizes)}</p>')
    link = "" if row.output is None else f' <a href="{_url(row.output)}">mask</a>'
    parts.append(f'<p class="foot"><span>{_number(row.seconds)} s</span>{link}</p></article>')
    return "".join(parts)


def _marks(row: IndexRow, unusual: Sequence[str], spreads: Mapping[str, _Spread]) -> list[tuple[str, str]]:
    """Return the warnings of a card, and the HTML attributes that colour them."""
    bad, odd = ' class="bad"', ' class="odd"'
    marks: list[tuple[str, str]] = []
    if row.outcome != "done":
        marks.append((row.outcome, bad if row.outcome == "failed" else ""))
    if row.empty:
        marks.append(("nothing found", bad))
    marks += [
        (f"unusual volume: {name} (median {_number(spreads[name].median)} ml)", odd) for name in unusual
    ]
    if row.unmet:
        marks.append((f"{row.unmet} prompt{'s' if row.unmet > 1 else ''} not honoured", odd))
    if row.not_found:
        marks.append((f"not found: {', '.join(row.not_found)}", odd))
    return marks


def _number(value: float) -> str:
    """Format a number with at least three digits, without trailing zeros."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _url(path: str) -> str:
    """Return a relative URL of a relative path; colons are encoded so that no name is parsed as a scheme."""
    return escape(quote(os.fsencode(path)))


_DIALOG = (
    '<dialog id="large" tabindex="-1" aria-label="One case"><div class="bar">'
    '<button type="button" data-action="previous">Previous</button>'
    '<button type="button" data-action="next">Next</button><span id="place"></span>'
    '<button type="button" data-action="close">Close</button></div><div id="one"></div></dialog>'
)
_LEGEND = (
    "<p><kbd>J</kbd> <kbd>K</kbd> or the arrows move from card to card, <kbd>Enter</kbd> enlarges, "
    "<kbd>F</kbd> flags, <kbd>/</kbd> searches. Flags stay in this browser.</p>"
    "<p>Each picture shows the axial, the coronal and the sagittal slice in which most was found; the "
    "patient's right is on the left, the front at the top or on the left. For research only.</p>"
)
