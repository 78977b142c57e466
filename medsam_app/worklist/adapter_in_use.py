"""Training examples of a worklist, and the adapter in use.

Accepted cases are the examples. An adapter that was trained on them is copied next to the database before it
is used, so that the next teaching run does not overwrite it.
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
from medsam_app.worklist.teaching_state import Example

ADAPTERS, IN_USE = "adapters", "in_use.json"
#: Folder of a teaching run; hidden, because its parent folder is scanned for volumes.
TEACHING = ".medsam_app_teaching"


class InUse(BaseModel):
    """Record of the adapter that a worklist uses.

    Attributes:
        file: file name in the folder of adapters; None if no adapter is used.
        who, since: user who chose it, and time, UTC in ISO 8601.
    """

    model_config = ConfigDict(extra="forbid")
    file: str | None
    who: str
    since: str


def examples(worklist: Worklist) -> tuple[list[Example], dict[int, str]]:
    """Return the accepted cases with segmented objects, and the names of their label values.

    Cases that are one of several series, frames or channels of a file are left out, because a list of files
    cannot identify them. A label value with several names gets the most frequent one.
    """
    result: list[Example] = []
    names: dict[int, Counter[str]] = defaultdict(Counter)
    for case in worklist.cases(state="accepted"):
        mask, prompts = accepted_files(worklist, case.name)
        part = chosen_part(worklist.work(case.name))
        if case.series is not None or case.missing or not mask.is_file():
            continue
        image, labels = worklist.folder / case.path, _labels(prompts)
        if labels and _is_whole(image, part):
            result.append(Example(case=case.name, image=image, label=mask))
            for value, name in labels.items():
                names[value][name] += 1
    return result, {value: count.most_common(1)[0][0] for value, count in sorted(names.items())}


def _is_whole(image: Path, part: Mapping[str, Any]) -> bool:
    """Return whether a part is the whole image, and not one of several frames or channels."""
    if part.get("frame") or part.get("channel"):
        return False
    try:
        format = find_format(image)
        # Number 0 may be the first of several frames or channels, or the only one.
        info = inspect(image, format) if format != "dicom" else None
    except MedsamError:
        return False
    return info is None or info.frames == info.channels == 1


def _labels(prompts: Path) -> dict[int, str]:
    """Return the label values and names of the objects in a prompt file; empty if it cannot be read."""
    try:
        objects = json.loads(prompts.read_text(encoding="utf-8"))["objects"]
        return {int(item["label"]): str(item["name"]) for item in objects if item["prompts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def adapter_of(worklist: Worklist) -> Path | None:
    """Return the path of the adapter that a worklist uses, or None."""
    folder = worklist.path.parent / ADAPTERS
    try:
        record = InUse.model_validate_json((folder / IN_USE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    path = None if record.file is None else folder / Path(record.file).name
    return path if path is not None and path.is_file() else None


def use_adapter(worklist: Worklist, adapter: Path | None, *, who: str = "") -> Path | None:
    """Set the adapter that a worklist uses, and return the path of its copy.

    Args:
        worklist: the worklist.
        adapter: file to copy; None for no adapter.
        who: user who chose it.

    Raises:
        AdapterError: the file is not an adapter.
        SaveError: the file could not be copied.
    """
    folder, copy = worklist.path.parent / ADAPTERS, None
    try:
        folder.mkdir(exist_ok=True)
        if adapter is not None:
            sha = read_header(adapter).sha256
            copy = folder / f"taught-{datetime.now(UTC):%Y%m%d}-{sha[:8]}.safetensors"
            if not copy.exists():
                with replace_file(copy) as draft:
                    shutil.copyfile(adapter, draft)
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        record = InUse(file=None if copy is None else copy.name, who=who, since=now)
        write_whole(folder / IN_USE, record.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise SaveError(
            f"The adapter could not be kept in '{folder}' ({error.strerror}); make room there and try again."
        ) from None
    return copy
