"""Self-contained HTML report of an evaluation: curves, pictures and tables."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_app._version import __version__
from medsam_app.atomic import save_whole
from medsam_app.evaluate import plots
from medsam_app.evaluate.gallery import Gallery, case_dice, ranked_cases
from medsam_app.evaluate.tables import Sheet, count_name, remarks, sheets
from medsam_app.html_page import definitions, page

if TYPE_CHECKING:  # heavy
    from medsam_app.evaluate.run import Evaluation

_STYLE = """
:root { color-scheme: light; }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1.2rem; color: #1c1c1c; background: #fff;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #ddd; }
p, li { max-width: 46rem; }
p.note { color: #555; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 1rem 0 1.6rem; }
figcaption { margin: 0 0 .3rem; font-weight: 600; overflow-wrap: anywhere; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; font-size: 15px; padding: 1.2rem 0 .3rem; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1px solid #888; font-weight: 600; color: #444; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
tbody tr:first-child td { border-top: 1px solid #e5e5e5; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 0; font-size: 14px; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
span.truth { color: #128a2c; font-weight: 600; } span.mask { color: #c26200; font-weight: 600; }
"""


def write_report(
    evaluation: Evaluation, path: Path, *, gallery: Gallery, figures: Sequence[tuple[str, bytes, str]] = ()
) -> None:
    """Write the page.

    Args:
        gallery: pictures of the cases.
        figures: additional figures: title, PNG, and a description.

    Raises:
        SaveError: the file cannot be written.
    """
    title = f"{evaluation.summaries[0].method} on {Path(evaluation.folder).name or evaluation.folder}"
    sentences = remarks(evaluation)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="note">Measured by simulated clicks with medsam-app {__version__}. For research only.</p>',
        f"<p>{escape(sentences[0])}</p>",
        "<h2>Dice</h2>",
        _image(
            plots.curves(evaluation.scores, first=evaluation.first, seed=evaluation.seed),
            "Mean Dice of all objects by click, a line a method",
        ),
        '<p class="note">Lines: means over the objects of a method. Bands: 95 % intervals from resampled '
        "cases.</p>",
        _image(
            plots.strip(
                evaluation.scores,
                [summary.method for summary in evaluation.summaries],
                first=evaluation.first,
            ),
            "Mean Dice of every case in the end, a row a method",
        ),
        '<p class="note">Dots: cases. Bars: their median.</p>',
        *(
            f'<h2>{escape(name)}</h2>\n{_image(png, description)}\n<p class="note">{escape(description)}</p>'
            for name, png, description in figures
        ),
        *_reliability(evaluation),
        *_pictures(evaluation, gallery),
        "<h2>Tables</h2>",
        *(_table(sheet) for sheet in sheets(evaluation)),
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences[1:]),
        *_skipped(evaluation),
        "<h2>How it was measured</h2>",
        _settings(evaluation),
    ]
    save_whole(path, page(title, "\n".join(parts), style=_STYLE))


def _reliability(evaluation: Evaluation) -> list[str]:
    """Return the curve of predicted quality and Dice, if any method predicts a quality."""
    found = {one.method: one.reliability for one in evaluation.summaries if one.reliability is not None}
    if not found:
        return []
    description = "Mean Dice of masks by the quality that the method predicts for them."
    note = f'<p class="note">{description} Dotted: a prediction that is right on average.</p>'
    return ["<h2>Predicted quality</h2>", _image(plots.reliability_curves(found), description), note]


def _pictures(evaluation: Evaluation, gallery: Gallery) -> list[str]:
    """Return the best, the median and the worst case of the first method, with the masks of every method."""
    first = evaluation.summaries[0].method
    ranked = [(rank, key) for rank, key in ranked_cases(evaluation.scores, first) if key in gallery]
    if not ranked:
        return []
    dice = {summary.method: case_dice(evaluation.scores, summary.method) for summary in evaluation.summaries}
    parts = [
        "<h2>Cases</h2>",
        f"<p>Chosen by the mean Dice of {escape(first)} after "
        f"{count_name(evaluation.clicks, evaluation.first)}, "
        'in the slice that holds most of the objects: <span class="truth">the truth in green</span>, '
        '<span class="mask">the mask in orange</span>.</p>',
    ]
    for rank, key in ranked:
        titles = {
            method: f"{method}: Dice {of_case[key]:.3f}" for method, of_case in dice.items() if key in of_case
        }
        dataset, modality, case = key
        place = ", ".join(filter(None, (dataset, modality, case)))
        caption = f"{rank.capitalize()}: {place}"
        png = plots.case_picture(gallery[key], titles)
        parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{_image(png, caption)}</figure>")
    return parts


def _table(sheet: Sheet) -> str:
    style = [' class="text"' if number < sheet.text else "" for number in range(len(sheet.columns))]

    def cells(tag: str, row: list[str]) -> str:
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(style, row, strict=True))

    def body(rows: list[list[str]]) -> str:
        return "<tbody>" + "".join(f"<tr>{cells('td', row)}</tr>" for row in rows) + "</tbody>"

    head = f"<thead><tr>{cells('th', sheet.columns)}</tr></thead>"
    caption = f"<caption>{escape(sheet.title)}</caption>"
    bodies = "".join(body(rows) for rows in sheet.sections)
    return f'<div class="wide"><table>{caption}{head}{bodies}</table></div>'


def _skipped(evaluation: Evaluation) -> list[str]:
    if not evaluation.skipped:
        return []
    items = [
        f"<li>{escape(f'{case.dataset}, {case.case}: {case.error}')}</li>" for case in evaluation.skipped
    ]
    return [f"<h2>Skipped: {len(items)} of the cases</h2>", f"<ul>{''.join(items)}</ul>"]


def _settings(evaluation: Evaluation) -> str:
    tolerance = (
        "the largest side of a voxel" if evaluation.tolerance is None else f"{evaluation.tolerance:g} mm"
    )
    values = {
        "data": f"{evaluation.folder} ({evaluation.layout})",
        "split": evaluation.split or "all cases",
        "datasets": ", ".join(evaluation.datasets),
        "labels": ", ".join(evaluation.labels),
        "model": f"{evaluation.model}, weights {evaluation.weights_sha256}",
        "adapter": evaluation.adapter,
        "prompts": f"{count_name(evaluation.clicks, evaluation.first)} on each object"
        + (", on what was found of it without a prompt" if evaluation.first == "found" else ""),
        "surface Dice": f"tolerance {tolerance}" if evaluation.distances else "not measured",
        "outlines": "refined in tiles" if evaluation.refine else "as the model's window gives them",
        "cases of a dataset": "" if evaluation.most_cases is None else f"at most {evaluation.most_cases}",
        "seed": str(evaluation.seed),
    }
    return definitions(values)


def _image(png: bytes, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
