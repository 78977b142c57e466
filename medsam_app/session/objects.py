"""Segmented object: name, label value, colour and prompts."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass

from medsam_app.errors import PromptError, SettingsError
from medsam_app.prompts.types import AnyPrompt, Box, Choice, Paint, Point, Scribble, locates_object

LARGEST_LABEL = 65535
LONGEST_NAME = 100
#: Colours of Okabe and Ito, then Tol's 'muted' and 'bright'. The first ones are distinguishable with any
#: colour vision, and all are visible on grey.
PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#88ccee", "#ddcc77",
    "#44aa99", "#cc6677", "#999933", "#aa4499", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SegmentedObject:
    """One object of a volume with its prompts.

    Attributes:
        id: identifier, never reused in a session.
        name: name; unique in a session.
        label: value in the label map, 1 to 65535; unique in a session.
        colour: '#rrggbb'.
        prompts: prompts, in the order they were given.
        times: time of each prompt, UTC in ISO 8601; as many as prompts.
        may_overlap: whether it may share voxels with all other objects. Two objects that may not overlap
            share no voxel; the session's `overlap` decides which of them owns a voxel of both masks.
    """

    id: str
    name: str
    label: int
    colour: str
    prompts: tuple[AnyPrompt, ...] = ()
    times: tuple[str, ...] = ()
    may_overlap: bool = True

    @property
    def has_start(self) -> bool:
        """Whether a prompt locates the object; negative clicks alone do not."""
        return any(locates_object(prompt) for prompt in self.prompts)


def next_colour(taken: Sequence[str]) -> str:
    """Return the first unused colour of the palette, or a distinct hue if all of them are used."""
    for colour in PALETTE:
        if colour not in taken:
            return colour
    number = 0
    while True:
        # Steps of the golden ratio spread any number of hues evenly over the circle.
        hue, level = (number * 0.6180339887) % 1, 0.95 - 0.2 * (number % 3)
        red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.65, level))
        colour = f"#{red:02x}{green:02x}{blue:02x}"
        if colour not in taken:
            return colour
        number += 1


def checked_name(name: str, existing: Sequence[SegmentedObject]) -> str:
    """Return a name without spaces around it.

    Raises:
        SettingsError: the name is invalid, or one of the existing objects has it.
    """
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise SettingsError(
            f"An object's name has 1 to {LONGEST_NAME} printable characters; got {name[:LONGEST_NAME]!r}."
        )
    if name in {item.name for item in existing}:
        raise SettingsError(f"There is already an object named '{name}'; give another name.")
    return name


def checked_label(label: int, existing: Sequence[SegmentedObject]) -> int:
    """Return a label value.

    Raises:
        SettingsError: the label value is invalid, or one of the existing objects has it.
    """
    if isinstance(label, bool) or not isinstance(label, int) or not 1 <= label <= LARGEST_LABEL:
        raise SettingsError(f"A label value is a whole number from 1 to {LARGEST_LABEL}; got {label!r}.")
    for item in existing:
        if item.label == label:
            raise SettingsError(f"Label value {label} belongs to '{item.name}' already; give another one.")
    return label


def checked_colour(colour: str) -> str:
    """Return a colour in lower case; raise `SettingsError` if it is invalid."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise SettingsError(
            f"A colour is written '#rrggbb' in hexadecimal, such as '#e69f00'; got {colour!r}."
        )
    return colour.lower()


def checked_index(owner: SegmentedObject, index: int) -> int:
    """Return the index of a prompt; raise `PromptError` if there is no prompt with that index."""
    if not 0 <= index < len(owner.prompts):
        raise PromptError(
            f"'{owner.name}' has {len(owner.prompts)} prompts, numbered from 0; there is no prompt {index}."
        )
    return index


def prompt_words(prompt: AnyPrompt) -> str:
    """Return a description of a prompt for a menu."""
    if isinstance(prompt, Point):
        return "positive click" if prompt.positive else "negative click"
    if isinstance(prompt, Paint):
        return prompt.what
    if isinstance(prompt, Choice):
        return f"choice of mask {prompt.number}"
    if isinstance(prompt, Scribble):
        return "positive scribble" if prompt.positive else "negative scribble"
    return "box" if isinstance(prompt, Box) else "mask"
