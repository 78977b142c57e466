"""Files next to the masks of a folder run: run.json, results.csv and index.html."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsam_app._version import __version__
from medsam_app.atomic import save_whole
from medsam_app.batch.index_page import IndexRow, index_page
from medsam_app.batch.record import CaseRecord, Shard

RUN, TABLE, PAGE = "run", "results.csv", "index.html"
_COLUMNS = (
    "case", "image", "series", "outcome", "message", "warnings", "asked", "label", "name", "voxels",
    "volume_ml", "prompts", "unmet", "score", "output", "seconds",
)  # fmt: skip


def write_report(
    out: Path,
    cases: Sequence[CaseRecord],
    *,
    shard: Shard,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
    began: datetime,
    finished: bool,
) -> None:
    """Write run.json with the cases of the shard.

    Args:
        identity: settings that determined the masks.
        options: remaining options of the run.
        finished: whether all cases have ended.

    Raises:
        SaveError: a file cannot be written.
    """
    counts = Counter(case.outcome for case in cases)
    run = {
        "program": f"medsam_app {__version__}",
        "python": platform.python_version(),
        **_versions(),
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
        "devices": sorted({case.device for case in cases if case.device}),
        "settings": dict(identity),
        "options": dict(options),
        "shard": {"number": shard.number, "count": shard.count},
        "began": began.isoformat(timespec="seconds"),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": finished,
        "counts": {"cases": len(cases), **{name: counts[name] for name in ("done", "failed", "skipped")}},
        "cases": [case.model_dump(mode="json", exclude={"settings", "key"}) for case in cases],
    }
    save_whole(out / f"{RUN}{shard.suffix}.json", json.dumps(run, indent=1) + "\n")


def write_overview(out: Path, cases: Sequence[CaseRecord]) -> None:
    """Write results.csv, one row per object, and index.html.

    Args:
        cases: cases of all shards.

    Raises:
        SaveError: a file cannot be written.
    """
    save_whole(out / TABLE, _table(cases))
    title = f"Masks in {out.resolve().name}"
    facts = {
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "by": f"medsam_app {__version__}",
    }
    save_whole(out / PAGE, index_page([_row(case) for case in cases], title=title, facts=facts))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "monai", "numpy", "nibabel", "SimpleITK", "ray"):
        try:
            versions[name.lower()] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _table(cases: Sequence[CaseRecord]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in cases:
        case_columns: dict[str, Any] = {
            "case": case.case,
            "image": case.image,
            "series": case.series or "",
            "outcome": case.outcome,
            "message": case.message,
            "warnings": " ".join(case.warnings),
            "asked": case.asked,
            "seconds": f"{_work_seconds(case):.2f}",
        }
        separate = bool(case.outputs) and case.outputs[0].path.startswith(f"{case.case}/")
        for number, record in enumerate(case.objects):
            output = case.outputs[number if separate else 0].path if case.outputs else ""
            object_columns = record.model_dump(
                include={"label", "name", "voxels", "prompts", "unmet", "score"}
            )
            writer.writerow(
                case_columns | object_columns | {"volume_ml": f"{record.volume_ml:.4f}", "output": output}
            )
        if not case.objects:
            writer.writerow(case_columns)
    return text.getvalue()


def _row(case: CaseRecord) -> IndexRow:
    return IndexRow(
        case=case.case,
        outcome=case.outcome,
        sentence=case.message or " ".join(case.warnings),
        thumbnail=case.thumbnail,
        output=case.outputs[0].path if case.outputs else None,
        volumes_ml={record.name: record.volume_ml for record in case.objects},
        seconds=_work_seconds(case),
        unmet=case.unmet,
        not_found=case.empty,
    )


def _work_seconds(case: CaseRecord) -> float:
    """Return the seconds of work on a case, without the time spent waiting for the model."""
    return sum(seconds for step, seconds in case.seconds.items() if step != "wait")
