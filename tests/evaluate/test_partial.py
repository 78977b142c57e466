"""Interrupted evaluations: nothing measured is lost, and the rest is measured by the same command."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest

from medsam_app.cli.app import main
from medsam_app.errors import SaveError, SettingsError
from medsam_app.evaluate.click_through import CaseScores
from medsam_app.evaluate.partial import ENDING, PartialResults, state_of_files
from medsam_app.evaluate.run import evaluate_folder
from medsam_app.measure.scores import Score
from tests.support.evaluation_data import write_folder
from tests.support.forked_cli import ForkedCli

OPTIONS = ("--clicks", "2", "--no-distances", "--device", "cpu")
KEY = ("balls", "CT", "case1")


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *(str(argument) for argument in arguments)])


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table without the times."""
    with path.open() as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
        ]


def score(dice: float = 0.5) -> Score:
    return Score("m", *KEY, "ball", 1, 200, 1, dice, 0.4, 0, 1.5)


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "data", cases=4)
    straight, table, page = (tmp_path / name for name in ("straight.csv", "scores.csv", "report.html"))
    partial = table.with_name(table.name + ENDING)
    assert evaluate(folder, *OPTIONS, "--csv", straight) == 0
    command = [str(word) for word in ("evaluate", folder, *OPTIONS, "--csv", table, "--report", page)]
    killed = ForkedCli(command)
    try:
        limit = time.monotonic() + 240
        while not partial.exists() or len(partial.read_text().splitlines()) < 2:
            assert killed.poll() is None and time.monotonic() < limit, killed.stderr
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait()
    done = len(partial.read_text().splitlines()) - 1
    assert 1 <= done < 4 and not table.exists() and not page.exists()
    partial.write_text(partial.read_text() + '{"case": ["cut off')
    capsys.readouterr()
    assert main(command) == 0
    assert f"scores.csv.partial already holds {done} measured cases." in capsys.readouterr().err
    assert rows(table) == rows(straight)
    assert not partial.exists()
    assert page.read_text().count("data:image/png") >= 4  # pictures of resumed cases, too
    # A finished run is not overwritten, and leaves nothing behind.
    assert main(command) == 2
    assert not list(tmp_path.glob(f"*{ENDING}"))


def test_other_settings_are_refused_or_discarded(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv.partial"
    PartialResults(path, {"refine": True, "clicks": (1, 2)}).add(KEY, "f", CaseScores([score()]), None)
    both = r"other settings \(clicks: \[1, 2\] there, \[1\] now; refine: True there, False now\)"
    with pytest.raises(SettingsError, match=both):
        PartialResults(path, {"refine": False, "clicks": (1,)})
    assert PartialResults(path, {"refine": True, "clicks": (1, 2)}, overwrite=True).resumed == 1
    assert PartialResults(path, {"refine": False, "clicks": (1, 2)}, overwrite=True).resumed == 0


def test_a_changed_case_is_measured_again(tmp_path: Path) -> None:
    image = tmp_path / "image.nii"
    image.write_bytes(b"one")
    results = PartialResults(tmp_path / "x.partial", {})
    results.add(KEY, state_of_files(image), CaseScores([score(0.25)], 3), None)
    results = PartialResults(tmp_path / "x.partial", {})
    kept = results.take(KEY, state_of_files(image), None)
    assert kept is not None and kept.scores == [score(0.25)] and kept.small == 3
    assert results.take(("balls", "CT", "case2"), state_of_files(image), None) is None
    image.write_bytes(b"three")
    assert results.take(KEY, state_of_files(image), None) is None
    image.unlink()
    assert results.take(KEY, state_of_files(image), None) is None


def test_other_files_of_that_name_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv.partial"
    path.write_text("mine\n")
    with pytest.raises(SaveError, match="is no unfinished evaluation"):
        PartialResults(path, {})
    assert path.read_text() == "mine\n"


@pytest.mark.slow
def test_few_objects_per_case_and_refined_outlines(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    everything = evaluate_folder(folder, clicks=1, distances=False, device="cpu", refine=False)
    sizes: dict[str, list[int]] = {}
    for each in everything.scores:
        sizes.setdefault(each.case, []).append(each.voxels)
    assert min(map(len, sizes.values())) > 1
    one = evaluate_folder(folder, clicks=1, distances=False, device="cpu", per_case=1)
    assert one.refine and one.per_case == 1
    assert [(s.case, s.voxels) for s in one.scores] == [(case, min(found)) for case, found in sizes.items()]
    with pytest.raises(SettingsError, match="At least one object per case"):
        evaluate_folder(folder, per_case=0)


def test_the_partial_file_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    PartialResults(path, {"nets": ()}).add(KEY, "f", CaseScores([score(float(np.float64(0.5)))]), None)
    settings, line = (json.loads(text) for text in path.read_text().splitlines())
    assert settings == {"settings": {"nets": []}}
    assert line["case"] == list(KEY) and line["scores"][0]["dice"] == 0.5
