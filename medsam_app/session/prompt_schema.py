"""Schema of prompt files, versions 1 to 3.

Every field is validated on reading. Unknown fields are refused, so that a misspelt name is an error and not
silently ignored.
"""

from __future__ import annotations

import binascii
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index
from medsam_app.prompts.types import (
    MOST_ALTERNATIVES,
    AnyPrompt,
    Box,
    Choice,
    Coordinates,
    MaskPrompt,
    Paint,
    Point,
    Scribble,
    check_prompts,
)
from medsam_app.session.objects import LARGEST_LABEL, LONGEST_NAME, SegmentedObject
from medsam_app.session.settings import Overlap, SessionSettings

Row = tuple[float, float, float, float]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Space = Literal["voxel", "world"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageEntry(_Model):
    """Image of the prompts.

    Attributes:
        path: relative to the prompt file if possible, with '/'; None if the image is not a file.
        name: last part of the path.
        shape: voxels along (i, j, k).
        affine: 4 rows, voxel indices to mm in RAS+.
        sha256: hash of the voxels and the affine; see `Volume.fingerprint`.
        series, frame, channel: part of the file; see `load_volume`.
    """

    path: str | None
    name: str
    shape: Index
    affine: tuple[Row, Row, Row, Row]
    sha256: Sha256
    series: str | None = None
    frame: int = Field(default=0, ge=0)
    channel: int = Field(default=0, ge=0)

    @property
    def grid(self) -> Grid:
        """Grid of the image."""
        return Grid(self.shape, np.asarray(self.affine, dtype=np.float64))


class WeightsEntry(_Model):
    """Name of a model or adapter, and hash of its weights."""

    id: str
    sha256: str


class SettingsEntry(_Model):
    """Settings of the session; see `SessionSettings`. A file may omit fields with default values."""

    overlap: Overlap = "later"
    refine: bool = True
    by_label: bool = False


class PointEntry(_Model):
    """Click; coordinates are voxel indices (i, j, k), or mm in RAS+ if `space` is 'world'."""

    kind: Literal["point"]
    coordinates: Coordinates
    sign: Literal["positive", "negative"]
    space: Space
    time: datetime | None = None


class ScribbleEntry(_Model):
    """Scribble; see `Scribble`. Coordinates are as in `PointEntry`."""

    kind: Literal["scribble"]
    coordinates: tuple[Coordinates, ...] = Field(min_length=1, max_length=2000)
    sign: Literal["positive", "negative"]
    space: Space
    time: datetime | None = None


class BoxEntry(_Model):
    """Box given by two opposite corners, both inside. A box on a slice is flat along one axis."""

    kind: Literal["box"]
    lower: Coordinates
    upper: Coordinates
    space: Space
    time: datetime | None = None


class MaskEntry(_Model):
    """Mask; see `MaskPrompt`."""

    kind: Literal["mask"]
    shape: Index
    start: Index
    stop: Index
    packed: str
    space: Literal["voxel"] = "voxel"
    time: datetime | None = None


class BitsEntry(_Model):
    """Voxels of the volume; see `Bits`."""

    shape: Index
    start: Index
    stop: Index
    packed: str


class PaintEntry(_Model):
    """Painted voxels; see `Paint`."""

    kind: Literal["paint"]
    what: str = Field(min_length=1, max_length=60)
    inside: BitsEntry | None = None
    outside: BitsEntry | None = None
    locked: bool = False
    space: Literal["voxel"] = "voxel"
    time: datetime | None = None


class ChoiceEntry(_Model):
    """Choice of another mask for the first prompt; see `Choice`."""

    kind: Literal["choice"]
    number: int = Field(ge=1, le=MOST_ALTERNATIVES)
    time: datetime | None = None


Entry = PointEntry | ScribbleEntry | BoxEntry | MaskEntry | PaintEntry | ChoiceEntry
PromptEntry = Annotated[Entry, Field(discriminator="kind")]


class ObjectEntry(_Model):
    """Object and its prompts, in the order they were given."""

    id: str = Field(min_length=1, max_length=LONGEST_NAME)
    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    label: int = Field(ge=1, le=LARGEST_LABEL)
    colour: str = Field(pattern="^#[0-9a-fA-F]{6}$")
    prompts: tuple[PromptEntry, ...]
    may_overlap: bool = True


class PromptFile(_Model):
    """Prompt file. Version 2 added scribbles, paint and objects that may not overlap; version 3 choices."""

    format: Literal["medsam_app prompts"] = "medsam_app prompts"
    version: Literal[1, 2, 3] = 1
    written_by: str
    image: ImageEntry
    model: WeightsEntry | None
    adapter: WeightsEntry | None
    settings: SettingsEntry
    objects: tuple[ObjectEntry, ...]


def needed_version(objects: Sequence[SegmentedObject]) -> Literal[1, 2, 3]:
    """Return the lowest version that can represent the objects, for compatibility with older programs."""
    if any(isinstance(prompt, Choice) for item in objects for prompt in item.prompts):
        return 3
    has_new_prompts = any(isinstance(prompt, Scribble | Paint) for item in objects for prompt in item.prompts)
    return 2 if has_new_prompts or not all(item.may_overlap for item in objects) else 1


def written_form(file: PromptFile) -> dict[str, Any]:
    """Return a file as JSON values, without fields that its version does not have."""
    data = file.model_dump(mode="json")
    if file.version == 1:
        for item in data["objects"]:
            del item["may_overlap"]
    return data


def settings_entry(settings: SessionSettings) -> SettingsEntry:
    """Return settings in the form of the file; a setting without a field in the format is an error."""
    return SettingsEntry.model_validate(asdict(settings))


def read_settings(entry: SettingsEntry) -> SessionSettings:
    """Return the settings of a file in the form of the session."""
    return SessionSettings(overlap=entry.overlap, refine=entry.refine, by_label=entry.by_label)


def object_entry(owner: SegmentedObject) -> ObjectEntry:
    """Return an object in the form of the file."""
    times = [datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None for text in owner.times]
    prompts = tuple(_prompt_entry(prompt, time) for prompt, time in zip(owner.prompts, times, strict=True))
    return ObjectEntry(
        id=owner.id,
        name=owner.name,
        label=owner.label,
        colour=owner.colour,
        prompts=prompts,
        may_overlap=owner.may_overlap,
    )


def _prompt_entry(prompt: AnyPrompt, time: datetime | None) -> Entry:
    if isinstance(prompt, Point | Scribble):
        sign: Literal["positive", "negative"] = "positive" if prompt.positive else "negative"
        if isinstance(prompt, Scribble):
            line = prompt.coordinates
            return ScribbleEntry(kind="scribble", coordinates=line, sign=sign, space="voxel", time=time)
        return PointEntry(kind="point", coordinates=prompt.coordinates, sign=sign, space="voxel", time=time)
    if isinstance(prompt, Box):
        return BoxEntry(kind="box", lower=prompt.lower, upper=prompt.upper, space="voxel", time=time)
    if isinstance(prompt, Choice):
        return ChoiceEntry(kind="choice", number=prompt.number, time=time)
    if isinstance(prompt, Paint):
        return PaintEntry(**prompt.model_dump(), time=time)
    return MaskEntry(**prompt.model_dump(), time=time)


def read_objects(entries: tuple[ObjectEntry, ...], grid: Grid) -> tuple[list[SegmentedObject], list[str]]:
    """Return the objects of a file on a grid, and all problems as text."""
    objects, problems = [], []
    for attribute in ("id", "name", "label"):
        values = [
            getattr(entry, attribute).strip() if attribute == "name" else getattr(entry, attribute)
            for entry in entries
        ]
        for value in sorted({value for value in values if values.count(value) > 1}):
            problems.append(
                f"{values.count(value)} objects have the {attribute} {value!r}; each needs its own"
            )
    for entry in entries:
        prompts: list[AnyPrompt] = []
        if not entry.name.strip() or not entry.name.isprintable():
            problems.append(f"the name {entry.name!r} has no printable characters, or others")
        for number, prompt_entry in enumerate(entry.prompts, start=1):
            try:
                prompt = _prompt(prompt_entry, grid)
                prompts.append(prompt)
                # The number in the message of `check_prompts` is removed below.
                check_prompts(prompts if isinstance(prompt, Choice) else [prompt], grid)
            except PromptError as error:
                message = re.sub(r"^Prompt \d+,? ", "", str(error).rstrip("."))
                problems.append(f"object '{entry.name}', prompt {number}: {message}")
        times = tuple(
            prompt_entry.time.isoformat().replace("+00:00", "Z") if prompt_entry.time else ""
            for prompt_entry in entry.prompts
        )
        objects.append(
            SegmentedObject(
                id=entry.id,
                name=entry.name.strip(),
                label=entry.label,
                colour=entry.colour.lower(),
                prompts=tuple(prompts),
                times=times[: len(prompts)],
                may_overlap=entry.may_overlap,
            )
        )
    return objects, problems


def _prompt(entry: Entry, grid: Grid) -> AnyPrompt:
    if isinstance(entry, ChoiceEntry):
        return Choice(number=entry.number)
    if isinstance(entry, PointEntry):
        position = voxel_of(entry.coordinates, grid) if entry.space == "world" else entry.coordinates
        return Point(coordinates=position, positive=entry.sign == "positive")
    if isinstance(entry, ScribbleEntry):
        line = (
            [voxel_of(position, grid) for position in entry.coordinates]
            if entry.space == "world"
            else entry.coordinates
        )
        return Scribble(coordinates=tuple(line), positive=entry.sign == "positive")
    if isinstance(entry, BoxEntry):
        if entry.space == "world":
            return world_box(entry.lower, entry.upper, grid)
        return Box(lower=entry.lower, upper=entry.upper)
    fields = entry.model_dump(exclude={"space", "time"})
    prompt = Paint(**fields) if isinstance(entry, PaintEntry) else MaskPrompt(**fields)
    parts = [prompt] if isinstance(prompt, MaskPrompt) else [bits for bits, _ in prompt.parts]
    for bits in parts:
        if not all(0 <= a < b <= n for a, b, n in zip(bits.start, bits.stop, bits.shape, strict=True)):
            raise PromptError(
                f"its box from {bits.start} to {bits.stop} does not lie in its shape {bits.shape}"
            )
    # Check before unpacking: a mask that does not have the shape of the image must not use memory.
    check_prompts([prompt], grid)
    try:
        for bits in parts:
            bits.patch()
    except (binascii.Error, zlib.error) as error:
        raise PromptError(f"its packed voxels are damaged ({error})") from None
    return prompt


def voxel_of(world: Coordinates, grid: Grid) -> Coordinates:
    """Return the voxel indices of a position in mm, rounded to remove numerical noise."""
    i, j, k = (round(float(value), 6) + 0.0 for value in grid.to_voxel(world))
    return i, j, k


def world_box(lower: Coordinates, upper: Coordinates, grid: Grid) -> Box:
    """Return the box along the voxel axes that holds all 8 corners of a box along the world axes."""
    ends = list(zip(lower, upper, strict=True))
    corners = np.array([voxel_of((x, y, z), grid) for x in ends[0] for y in ends[1] for z in ends[2]])
    low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Box(lower=tuple(low), upper=tuple(high))
