"""The report: a single self-contained page, and the content of its figures."""

from __future__ import annotations

import base64
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from medsam_app.cli.app import main
from medsam_app.evaluate import plots
from medsam_app.evaluate.click_through import CaseInfo, ClickPlan, evaluate_case
from medsam_app.evaluate.comparison import compare
from medsam_app.evaluate.gallery import Gallery, Picture, ranked_cases
from medsam_app.evaluate.protocols import Methods
from medsam_app.evaluate.report import write_report
from medsam_app.evaluate.run import Evaluation, Skipped
from medsam_app.evaluate.summary import summarise
from medsam_app.io.volume import Volume
from medsam_app.measure.scores import Score
from tests.evaluate.test_methods import Thresholds
from tests.support.evaluation_data import two_balls, write_folder

EVIL = '<script>alert("1")</script>&$x_1$'


class Page(HTMLParser):
    """Parsed page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def measured(gallery: Gallery, count: int = 4) -> Evaluation:
    """Two methods without a model on a few increasingly difficult cases, with hostile names."""

    class Worse(Thresholds):
        off = 0

        def predict_labels(self) -> np.ndarray:
            return np.roll(super().predict_labels(), self.off, axis=0)

    scores, false, worse = [], [], Worse()
    for number in range(count):
        image, labels, affine = two_balls(number)
        volume = Volume.from_array(image, affine)
        worse.off = number
        case_scores = evaluate_case(
            Methods(mappers={"exact": Thresholds(), EVIL: worse}),
            volume,
            labels,
            plan=ClickPlan(shown=(1,)),
            about=CaseInfo(dataset=EVIL, modality="CT", case=f"case{number}", names={1: EVIL}),
            gallery=gallery,
        )
        scores += case_scores.scores[1::2] + case_scores.scores[::2]  # worse method first
        false += case_scores.false
    return Evaluation(
        folder=f"/data/{EVIL}",
        layout="two folders",
        split="",
        datasets=(),
        labels=(),
        first="click",
        clicks=1,
        shown=(1,),
        targets=(0.8,),
        distances=True,
        tolerance=None,
        seed=0,
        refine=False,
        most_cases=None,
        per_case=None,
        model="exact",
        weights_sha256="0" * 64,
        adapter="",
        scores=tuple(scores),
        summaries=summarise(scores, false=false),
        comparisons=compare(scores, [(EVIL, "exact")], shown=(0,)),
        false_labels=tuple(false),
        small=count,
        skipped=(Skipped("d", EVIL, "not \udcff readable"),),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page, Evaluation]:
    gallery = Gallery()
    evaluation = measured(gallery)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(evaluation, path, gallery=gallery)
    text = path.read_text()
    return text, Page(text), evaluation


def test_names_are_text_and_nothing_is_loaded(page: tuple[str, Page, Evaluation]) -> None:
    _, parsed, _ = page
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "link", "iframe", "object", "a", "form"}
    assert sum(EVIL in word for word in parsed.words) > 5
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"]
        elif "src" in attributes or "href" in attributes:
            raise AssertionError(attributes)
    policy = [a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_page_shows_what_was_measured(page: tuple[str, Page, Evaluation]) -> None:
    text, parsed, evaluation = page
    words = "\n".join(parsed.words)
    for summary in evaluation.summaries:
        all_objects = summary.group("objects")
        assert all_objects is not None
        mean = all_objects.dice[0]
        assert f"{mean.value:.3f} ({mean.low:.2f}-{mean.high:.2f})" in words
        assert f"{summary.method}: {summary.false_labels} labels found in cases that have none" in words
    assert "8 objects; 4 under 100 voxels were left out" in words
    assert "Skipped: 1 of the cases" in words and "\\udcff" in words
    ranks = [line for line in parsed.words if line.startswith(("Best: ", "Median: ", "Worst: "))]
    assert [line.rsplit(", ", 1)[1] for line in ranks] == ["case0", "case2", "case3"]
    assert text.count("<table>") == 8 and text.count("<img ") == 5


def test_images_are_valid(page: tuple[str, Page, Evaluation]) -> None:
    text, _, _ = page
    images = re.findall(r"base64,([^\"]+)", text)
    for image in images:
        assert base64.b64decode(image).startswith(b"\x89PNG\r\n")


def colour_box(png: bytes, colour: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last (row, column) of the pixels close to a colour."""
    from matplotlib.image import imread

    rgb = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255
    near = np.abs(imread(io.BytesIO(png))[..., :3] - rgb).max(axis=-1) < 0.12
    where = np.argwhere(near)
    assert len(where)
    return tuple(where.min(axis=0).tolist()), tuple(where.max(axis=0).tolist())


def test_a_picture_has_the_shape_of_the_body() -> None:
    """Draw a square of voxels three times as high as wide: rows are 3 mm apart and columns 1 mm."""
    truth, mask = np.zeros((20, 40), dtype=np.uint8), np.zeros((20, 40), dtype=bool)
    truth[5:15, 10:20] = 1
    mask[5:15, 24:34] = True
    picture = Picture(np.full((20, 40), 99, dtype=np.uint8), truth, {"m": [mask]}, (3.0, 1.0))
    png = plots.case_picture(picture, {"m": "$a method$"})
    for colour in (plots.TRUTH, plots.MASK):
        low, high = colour_box(png, colour)
        assert (high[0] - low[0]) / (high[1] - low[1]) == pytest.approx(3, rel=0.05)
    # The mask is to the right of the truth, as in the arrays.
    assert colour_box(png, plots.MASK)[0][1] > colour_box(png, plots.TRUTH)[1][1]
    empty = Picture(picture.image, truth, {"m": [np.zeros_like(mask)]}, (3.0, 1.0))
    assert plots.case_picture(empty, {"m": "nothing"}) != png


def test_the_slice_shows_most_of_the_objects_in_radiological_convention() -> None:
    labels = np.zeros((30, 28, 12), dtype=np.uint8)
    labels[5:8, 6:12, 2:9] = 1
    labels[4:16, 6:20, 7] = 2
    image = np.zeros(labels.shape, dtype=np.int16)
    image[4, 6, 7] = 1000  # a corner of the object, at the patient's left and back in RAS
    for flip in ((1, 1, 1), (-1, -1, 1)):
        gallery = Gallery()
        affine = np.diag([1.0 * flip[0], 2.0 * flip[1], 4.0, 1.0])
        seen = slice(None, None, flip[0]), slice(None, None, flip[1])
        gallery.begin(Volume.from_array(image[seen], affine), labels[seen])
        gallery.add("m", labels[seen] == 2)
        gallery.finish(("d", "CT", "a"))
        picture = gallery["d", "CT", "a"]
        assert picture.spacing == (2.0, 1.0)
        # Slice 7 has 12 x 14 object voxels; the margin is clipped to the volume.
        assert (picture.truth > 0).sum() == 12 * 14 and picture.image.shape == (14 + 6 + 8, 12 + 4 + 8)
        np.testing.assert_array_equal(picture.masks["m"][0], picture.truth == 2)
        rows, columns = np.nonzero(picture.truth)
        assert picture.image[rows.min(), columns.max()] == 255  # at the bottom right of the picture


def test_coarse_slices_are_shown_as_acquired() -> None:
    """Show one acquired slice of a sagittal image with 5 mm slices, the patient's front on the left."""
    labels = np.zeros((6, 30, 20), dtype=np.uint8)
    labels[3, 10:20, 5:15] = 1
    gallery = Gallery()
    gallery.begin(Volume.from_array(np.arange(3600).reshape(6, 30, 20), np.diag([5.0, 1, 1.5, 1])), labels)
    gallery.finish(("d", "", "a"))
    picture = gallery["d", "", "a"]
    assert picture.spacing == (1.5, 1.0) and (picture.truth == 1).sum() == 100
    assert picture.image[0, 0] > picture.image[0, -1]  # larger j, which is the front, on the left


def test_ranks_of_few_cases() -> None:
    def score(case: str, click: int, dice: float, value: int = 1) -> Score:
        return Score("m", "d", "", case, "x", value, 200, click, dice, None, 0, 1.0)

    scores = [score("a", 1, 0.9), score("a", 2, 0.2), score("b", 2, 0.3), score("b", 2, 0.5, 2)]
    assert ranked_cases(scores[:2], "m") == [("best", ("d", "", "a"))]
    assert ranked_cases(scores, "m") == [("best", ("d", "", "b")), ("worst", ("d", "", "a"))]
    more = [*scores, score("c", 2, 0.3)]
    assert [key[2] for _, key in ranked_cases(more, "m")] == ["b", "c", "a"]
    assert ranked_cases(scores, "nobody") == []


def test_without_matplotlib_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = write_folder(tmp_path / "data", cases=0)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["evaluate", str(folder), "--report", str(tmp_path / "x.html")]) == 2
    error_lines = capsys.readouterr().err.splitlines()
    assert error_lines[-1].startswith(
        "Error: A report needs matplotlib, which is not installed; run 'pip install"
    )
    assert not any("Measuring" in line for line in error_lines) and not (tmp_path / "x.html").exists()


def test_the_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_folder(tmp_path / "data", cases=0)
    target = tmp_path / "report.html"
    options = ["--clicks", "1", "--label", "larger ball", "--tolerance", "2.5", "--device", "cpu"]
    assert main(["evaluate", str(folder), *options, "--report", str(target)]) == 0
    words = "\n".join(Page(target.read_text()).words)
    assert "sam3d_tiny on data" in words and "Surface Dice (within 2.5 mm) by dataset" in words
    assert f"Saved {target}." in capsys.readouterr().out


@pytest.mark.slow
def test_the_code_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_folder(tmp_path / "DATASET", cases=0)
    manifest = tmp_path / "DATASET" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("larger ball", "liver"))
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "Mean(value=0." in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"DATASET", "scores.csv", "report.html"}
