"""Datasets without usable cases, and worklists that cannot be opened."""

from __future__ import annotations

import sqlite3

from medsam_app.datasets.find import find_cases
from medsam_app.errors import DatasetError, WorklistConflict, WorklistError
from medsam_app.worklist.store import DATABASE, Worklist
from tests.support.bad_kit import case, nifti, text


@case("a dataset that does not exist", DatasetError)
def _(folder):
    find_cases(folder / "data")


@case("a dataset in a folder of no known layout", DatasetError)
def _(folder):
    nifti(folder / "one.nii.gz")
    find_cases(folder)


@case("a list of cases without a column that it needs", DatasetError)
def _(folder):
    find_cases(text(folder / "cases.csv", "picture,label\na.nii,b.nii\n"))


@case("a dataset.json that is not JSON", DatasetError)
def _(folder):
    text(folder / "dataset.json", "{")
    find_cases(folder)


@case("a worklist in a folder that cannot be written", WorklistError)
def _(folder):
    Worklist(folder, place=folder / "nowhere")


@case("a worklist that is not a database", WorklistError)
def _(folder):
    text(folder / DATABASE, "no database " * 500)
    Worklist(folder)


@case("a worklist of a newer program", WorklistError)
def _(folder):
    newer = sqlite3.connect(folder / DATABASE)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    Worklist(folder)


@case("work on a case that is not in the worklist", WorklistError)
def _(folder):
    Worklist(folder).save_work("b", "{}", seen=0)


@case("work on a case that another user has changed", WorklistConflict)
def _(folder):
    nifti(folder / "scan.nii.gz")
    worklist = Worklist(folder)
    worklist.refresh()
    worklist.save_work("scan", "{}", seen=0, who="ada")
    try:
        worklist.save_work("scan", "{}", seen=0, who="bob")
    except WorklistConflict as error:
        when = worklist.case("scan").changed[:16].replace("T", " ")
        raise WorklistConflict(str(error).replace(when, "2026-01-31 12:00"), version=error.version) from None
