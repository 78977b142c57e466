"""Training examples of a worklist, and the adapter in use.

Accepted cases are the examples. An adapter that was trained on them is copied next to the database once it
is to be used, so that the next run of teaching leaves it alone.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from medsam_app.adapters.header import read_header
from medsam_app.atomic import replace_file, write_whole
from medsam_app.errors import MedsamError, SaveError
from medsam_app.io.headers import find_format, inspect
from medsam_app.worklist.case_session import accepted_files, chosen_part
from medsam_app.worklist.store import Worklist
from medsam_app.worklist.teaching_job import Example

ADAPTERS, IN_USE = "adapters", "in_use.json"
#: Where a run of teaching has its files: hidden, since volumes are looked for in this folder.
TEACHING = ".medsam_app_teaching"


class InUse(BaseModel):
    """The adapter that a worklist uses.

    Attributes:
        file: its name in the folder of adapters; None where there is none any more.
        who, since: who said so and when.
    """

    model_config = ConfigDict(extra="forbid")
    file: str | None
    who: str
    since: str


def examples(worklist: Worklist) -> tuple[list[Example], dict[int, str]]:
    """Accepted cases that something is segmented in, and what their label values are called.

    Cases that are one series, frame or channel of several are left out: a list of files cannot name them. A
    value that is called by several names has the most frequent one.
    """
    found: list[Example] = []
    names: dict[int, Counter[str]] = defaultdict(Counter)
    for case in worklist.cases(state="accepted"):
        mask, prompts = accepted_files(worklist, case.name)
        part = chosen_part(worklist.work(case.name))
        if case.series is not None or case.missing or not mask.is_file():
            continue
        image, labels = worklist.folder / case.path, _labels(prompts)
        if labels and _is_whole(image, part):
            found.append(Example(case=case.name, image=image, label=mask))
            for value, name in labels.items():
                names[value][name] += 1
    return found, {value: count.most_common(1)[0][0] for value, count in sorted(names.items())}


def _is_whole(image: Path, part: Mapping[str, Any]) -> bool:
    """Return whether a part of a file is all that it has: not one frame or channel of several."""
    if part.get("frame") or part.get("channel"):
        return False
    try:
        format = find_format(image)
        # The first of several has the number that the only one has.
        info = inspect(image, format) if format != "dicom" else None
    except MedsamError:
        return False
    return info is None or info.frames == info.channels == 1


def _labels(prompts: Path) -> dict[int, str]:
    """Label values of a prompt file's objects with their names; nothing where it cannot be read."""
    try:
        objects = json.loads(prompts.read_text(encoding="utf-8"))["objects"]
        return {int(each["label"]): str(each["name"]) for each in objects if each["prompts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def adapter_of(worklist: Worklist) -> Path | None:
    """The adapter that a worklist uses, or None."""
    folder = worklist.path.parent / ADAPTERS
    try:
        held = InUse.model_validate_json((folder / IN_USE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    path = None if held.file is None else folder / Path(held.file).name
    return path if path is not None and path.is_file() else None


def use_adapter(worklist: Worklist, adapter: Path | None, *, who: str = "") -> Path | None:
    """Say which adapter a worklist uses from now on; where it is kept.

    Args:
        adapter: is copied; None for none.
        who: says so.

    Raises:
        AdapterError: it is no adapter.
        SaveError: it could not be copied.
    """
    folder, kept = worklist.path.parent / ADAPTERS, None
    try:
        folder.mkdir(exist_ok=True)
        if adapter is not None:
            sha = read_header(adapter).sha256
            kept = folder / f"taught-{datetime.now(UTC):%Y%m%d}-{sha[:8]}.safetensors"
            if not kept.exists():
                with replace_file(kept) as draft:
                    shutil.copyfile(adapter, draft)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        held = InUse(file=None if kept is None else kept.name, who=who, since=now)
        write_whole(folder / IN_USE, held.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise SaveError(
            f"The adapter could not be kept in '{folder}' ({error.strerror}); make room there and try again."
        ) from None
    return kept
