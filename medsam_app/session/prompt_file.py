"""Prompt files `<case>.prompts.json`, from which masks can be recomputed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medsam_app._version import __version__
from medsam_app.atomic import write_whole
from medsam_app.errors import PromptFileError, SaveError
from medsam_app.session.objects import SegmentedObject
from medsam_app.session.prompt_schema import (
    ImageEntry,
    PromptFile,
    WeightsEntry,
    needed_version,
    object_entry,
    read_objects,
    read_settings,
    settings_entry,
    written_form,
)
from medsam_app.session.settings import SessionSettings

if TYPE_CHECKING:
    from medsam_app.io.volume import Volume
    from medsam_app.models.identity import ModelIdentity

SUFFIX = ".prompts.json"
FORMAT: str = PromptFile.model_fields["format"].default
VERSIONS = (1, 2, 3)
#: Largest number of problems listed in one message.
MOST_PROBLEMS = 12
KINDS = ("point", "scribble", "box", "mask", "paint", "choice")


class RecordedSession(Protocol):
    """Attributes of a session that a prompt file records."""

    @property
    def volume(self) -> Volume:
        """Image."""

    @property
    def identity(self) -> ModelIdentity | None:
        """Identity of the model that predicts the masks."""

    @property
    def settings(self) -> SessionSettings:
        """Settings that affect the masks."""

    @property
    def objects(self) -> Sequence[SegmentedObject]:
        """Objects with their prompts."""


@dataclass(frozen=True)
class Replay:
    """Contents of a prompt file for an image.

    Attributes:
        objects: objects with prompts in voxel indices.
        settings: settings of the session that wrote the file.
        notes: sentences for the user: why the masks may differ from the original masks.
    """

    objects: Sequence[SegmentedObject]
    settings: SessionSettings
    notes: Sequence[str]


def save_prompt_file(session: RecordedSession, path: str | Path) -> Path:
    """Write the objects and prompts of a session.

    The file is written under a temporary name, read back, compared, and then renamed.

    Raises:
        SaveError: the file could not be written, or did not read back as written.
    """
    path = Path(path)
    contents = _describe(session, path)
    text = _as_text(contents)

    def verify(draft: Path) -> None:
        if read_prompt_file(draft) != contents:
            raise SaveError(
                f"The prompt file {path} did not read back as written; nothing was changed there."
            )

    try:
        write_whole(path, text, prove=verify)
    except OSError as error:
        raise SaveError(
            f"The prompt file {path} could not be written: {error.strerror or error}; "
            "give a path in a folder that exists and that you may write to."
        ) from None
    except PromptFileError as error:
        raise SaveError(f"The prompt file {path} did not read back as written: {error}") from None
    return path


def prompt_text(session: RecordedSession, folder: Path) -> str:
    """Return the prompt file of a session as text, with paths relative to a folder."""
    return _as_text(_describe(session, folder / f"work{SUFFIX}"))


def _as_text(file: PromptFile) -> str:
    return json.dumps(written_form(file), indent=1) + "\n"


def read_prompt_file(path: str | Path) -> PromptFile:
    """Read and validate a prompt file, without an image.

    Raises:
        PromptFileError: the file cannot be read or is invalid; the message lists the problems.
    """
    path = Path(path)
    try:
        return parse_prompt_file(path.read_bytes(), title=str(path))
    except OSError as error:
        raise PromptFileError(f"The prompt file {path} cannot be read: {error.strerror or error}.") from None


def parse_prompt_file(text: str | bytes, *, title: str) -> PromptFile:
    """Validate the text of a prompt file, without an image.

    Args:
        text: text in UTF-8.
        title: title of the text in error messages.

    Raises:
        PromptFileError: the text is invalid; the message lists the problems.
    """
    try:
        # Universal newlines: a single '\r' also ends a line in the line numbers of messages.
        raw = text.encode() if isinstance(text, str) else text
        text = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8").read()
    except UnicodeDecodeError:
        raise PromptFileError(
            f"{title} is not a prompt file: it is not JSON text; give a {SUFFIX} file."
        ) from None
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (line {error.lineno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise PromptFileError(f"{title} is not a prompt file: it is not JSON{where}.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PromptFileError(
            f'{title} is JSON but not a prompt file: it does not say "format": "{FORMAT}"; '
            "give a file that this program saved."
        )
    if data.get("version") not in VERSIONS:
        raise PromptFileError(
            f"The prompt file {title} has version {data.get('version')!r}, but this program reads versions "
            f"{VERSIONS[0]} to {VERSIONS[-1]}; use the program that wrote it "
            f"({str(data.get('written_by', 'unknown'))[:60]})."
        )
    try:
        return PromptFile.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_readable(problem, data) for problem in error.errors()]
        raise PromptFileError(_listed(title, problems)) from None


def open_prompt_file(
    path: str | Path,
    volume: Volume,
    *,
    identity: ModelIdentity | None = None,
    other_image: bool = False,
) -> Replay:
    """Read a prompt file for an image; see `replay_on`."""
    path = Path(path)
    return replay_on(
        read_prompt_file(path),
        volume,
        title=str(path),
        name=path.name,
        identity=identity,
        other_image=other_image,
    )


def replay_on(
    file: PromptFile,
    volume: Volume,
    *,
    title: str,
    name: str,
    identity: ModelIdentity | None = None,
    other_image: bool = False,
) -> Replay:
    """Return the objects and settings of a prompt file for an image.

    Args:
        file: contents of the prompt file.
        volume: image; it must have the shape, affine and voxels of the image in the file.
        title: title of the file in error messages.
        name: name of the file in notes.
        identity: identity of the model that will predict the masks; None without a model.
        other_image: accept an image on the same grid whose voxels differ.

    Raises:
        PromptFileError: the file belongs to another image, or holds invalid prompts.
    """
    notes = _compare_image(file.image, volume, title=title, name=name, other_image=other_image)
    objects, problems = read_objects(file.objects, volume.grid)
    if problems:
        raise PromptFileError(_listed(title, problems))
    notes += _compare_model(file, identity, name)
    return Replay(objects, read_settings(file.settings), notes)


def _compare_model(file: PromptFile, identity: ModelIdentity | None, name: str) -> list[str]:
    """Return notes if the model or adapter differs from that of the prompt file."""
    notes, recorded = [], file.model
    if (
        recorded is not None
        and identity is not None
        and (recorded.id, recorded.sha256) != (identity.model_id, identity.weights_sha256)
    ):
        same = recorded.id == identity.model_id
        description = f"other weights of {recorded.id}" if same else f"model {recorded.id}"
        notes.append(
            f"{name} was written with {description}, not {identity.model_id} as here: masks may differ."
        )
    adapter = (identity.adapter_id, identity.adapter_sha256) if identity is not None else ("", "")
    recorded_adapter = (file.adapter.id, file.adapter.sha256) if file.adapter is not None else ("", "")
    if recorded_adapter[1] != adapter[1]:
        then = f"the adapter {recorded_adapter[0]}" if recorded_adapter[1] else "no adapter"
        now = f"{adapter[0]} is on" if adapter[1] else "none is on"
        notes.append(f"{name} was written with {then}, and here {now}: masks may differ.")
    return notes


def _describe(session: RecordedSession, path: Path) -> PromptFile:
    volume, identity = session.volume, session.identity
    source = volume.source
    relative = None
    if source is not None:
        try:
            relative = Path(os.path.relpath(Path(source).resolve(), path.parent.resolve())).as_posix()
        except ValueError:  # no relative path to another drive
            relative = Path(source).resolve().as_posix()
    image = ImageEntry(
        path=relative,
        name=Path(source).name if source is not None else "unnamed",
        shape=tuple(int(n) for n in volume.grid.shape),  # type: ignore[arg-type]
        affine=tuple(tuple(float(v) for v in row) for row in volume.grid.affine),  # type: ignore[arg-type]
        sha256=volume.fingerprint,
        series=volume.series,
        frame=volume.frame,
        channel=volume.channel,
    )
    model = adapter = None
    if identity is not None:
        if identity.adapter_sha256:
            adapter = WeightsEntry(id=identity.adapter_id, sha256=identity.adapter_sha256)
        model = WeightsEntry(id=identity.model_id, sha256=identity.weights_sha256)
    return PromptFile(
        version=needed_version(session.objects),
        written_by=f"medsam_app {__version__}",
        image=image,
        model=model,
        adapter=adapter,
        settings=settings_entry(session.settings),
        objects=tuple(object_entry(item) for item in session.objects),
    )


def _compare_image(
    image: ImageEntry, volume: Volume, *, title: str, name: str, other_image: bool
) -> list[str]:
    """Return a note if another image is accepted; raise `PromptFileError` if it is not."""
    difference = image.grid.difference(volume.grid)
    if difference is not None:
        raise PromptFileError(
            f"The prompt file {title} belongs to '{image.name}', which lies on another grid: this image has "
            f"{difference}; give the image that the prompts were made on."
        )
    if image.sha256 == volume.fingerprint:
        return []
    if not other_image:
        raise PromptFileError(
            f"The prompt file {title} belongs to '{image.name}', which has the same grid but other voxels "
            f"(sha256 {image.sha256[:12]}… instead of {volume.fingerprint[:12]}…); give that image, or "
            "say that another one is meant (--other-image)."
        )
    return [f"{name} was made on another image of the same grid ('{image.name}'): masks will differ."]


def _readable(problem: ErrorDetails, data: Any) -> str:
    """Return an error of pydantic as text: the place and the problem."""
    where: list[str] = []
    node = data
    for step in problem["loc"]:
        if isinstance(step, int):
            what = where.pop().rstrip("s") if where else "entry"
            where.append(f"{what} {step + 1}")
        elif not (step in KINDS and isinstance(node, dict) and node.get("kind") == step):
            where.append(str(step))
        if isinstance(node, dict):
            node = node.get(step, node)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
    message = {
        "extra_forbidden": "is not a field of this format",
        "missing": "is missing",
        "too_long": "has too many entries",
    }.get(problem["type"], problem["msg"][0].lower() + problem["msg"][1:])
    value = problem.get("input")
    shown = f" (got {str(value)[:40]!r})" if isinstance(value, str | int | float | None) else ""
    return f"{', '.join(where) or 'file'}: {message}{shown}"


def _listed(title: str, problems: Sequence[str]) -> str:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return f"The prompt file {title} has {count}: {'; '.join(problems[:MOST_PROBLEMS])}{more}."
