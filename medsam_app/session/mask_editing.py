"""Changing an object's mask by hand: brush, lasso, tools, locked slices, another object's mask.

Each change becomes a `Paint`, which is a prompt like any other: one step of the history, written to prompt
files, deleted by itself where it was wrong. Locked voxels are never part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam_app.errors import PromptError, SettingsError
from medsam_app.grid.masks import keep_largest
from medsam_app.grid.patch import Index, Patch
from medsam_app.predict.core.paint_layer import Layer
from medsam_app.prompts.types import Bits, Paint
from medsam_app.session import mask_tools
from medsam_app.session.objects import SegmentedObject
from medsam_app.session.session import Session
from medsam_app.session.strokes import brush_stroke, lasso

Tool = Literal["fill holes", "keep largest", "smooth", "grow", "shrink", "interpolate"]
#: Millimetres that a tool or a brush may be given.
MOST_MM = 100.0
#: Names of slices across the RAS axes.
_PLANES = ("sagittal", "coronal", "axial")


def paint(
    session: Session,
    object_id: str,
    points: Sequence[Sequence[float]],
    *,
    radius: float,
    positive: bool = True,
    axis: int | None = None,
) -> SegmentedObject:
    """Draw on an object's mask with a brush, or erase; arguments as for `brush_stroke`.

    Raises:
        PromptError: it draws nothing.
        SettingsError: a radius out of range.
    """
    _check_mm("The brush's radius", radius)
    drawn = brush_stroke(points, radius, session.grid, axis=axis)
    return _draw(session, object_id, drawn, positive, "brush" if positive else "eraser")


def draw_lasso(
    session: Session, object_id: str, points: Sequence[Sequence[float]], *, axis: int, positive: bool = True
) -> SegmentedObject:
    """Fill or erase the inside of a lasso; arguments as for `lasso`.

    Raises:
        PromptError: it draws nothing.
    """
    drawn = lasso(points, session.grid, axis=axis)
    return _draw(session, object_id, drawn, positive, "lasso" if positive else "lasso, erasing")


def use_tool(
    session: Session,
    object_id: str,
    tool: Tool,
    *,
    mm: float = 1.0,
    axis: int | None = None,
    index: int | None = None,
) -> SegmentedObject:
    """Change an object's mask by a tool of `mask_tools`.

    Args:
        session: whose object it is.
        object_id: the object.
        tool: which.
        mm: how far 'smooth', 'grow' and 'shrink' go.
        axis, index: the one slice that is changed; without, all of the mask. 'interpolate' takes the axis
            across the slices: of locked ones where there are two or more, else of all that are not empty.

    Raises:
        PromptError: there is no mask, or nothing to change, or nothing would be left.
        SettingsError: millimetres out of range.
    """
    _check_mm(f"'{tool}'", mm)
    owner, made = session.get(object_id), session.prediction(object_id)
    if made is None or not made.voxels:
        raise PromptError(f"'{owner.name}' has no mask yet; click inside it or paint it first.")
    reach = {"grow": mm, "smooth": 3 * mm}.get(tool, 0.0)
    room = np.ceil(reach / session.grid.spacing).astype(int) + 1
    low = _index(np.maximum(np.asarray(made.patch.start) - room, 0))
    high = _index(np.minimum(np.asarray(made.patch.stop) + room, session.grid.shape))
    before = Patch(low, made.patch.within((low, high)))
    after = Patch(low, _apply(tool, before, session, owner, mm, axis, index))
    if not after.mask.any():
        raise PromptError(f"Nothing would be left of '{owner.name}'; give fewer millimetres.")
    words = f"{tool} {mm:g} mm" if tool in ("smooth", "grow", "shrink") else tool
    return _change(session, owner, before, after, words)


def _apply(
    tool: Tool,
    before: Patch,
    session: Session,
    owner: SegmentedObject,
    mm: float,
    axis: int | None,
    index: int | None,
) -> NDArray[np.bool_]:
    spacing, mask, start = session.grid.spacing.tolist(), before.mask, before.start
    if tool == "interpolate":
        if axis is None:
            raise PromptError("Interpolation goes along an axis; say which.")
        keys = [at - start[axis] for across, at in locked_slices(owner) if across == axis]
        return mask_tools.interpolate(mask, spacing, axis, keys if len(keys) > 1 else ())
    made: dict[str, Callable[[NDArray[np.bool_], list[float]], NDArray[np.bool_]]] = {
        "fill holes": lambda mask, _: mask_tools.fill_holes(mask),
        "keep largest": lambda mask, _: keep_largest(mask),
        "smooth": lambda mask, step: mask_tools.smooth(mask, step, mm),
        "grow": lambda mask, step: mask_tools.grow(mask, step, mm),
        "shrink": lambda mask, step: mask_tools.grow(mask, step, -mm),
    }
    if axis is None or index is None:
        return made[tool](mask, spacing)
    after, at = mask.copy(), index - start[axis]
    if 0 <= at < mask.shape[axis]:
        place = tuple(at if n == axis else slice(None) for n in range(3))
        after[place] = made[tool](mask[place], [step for n, step in enumerate(spacing) if n != axis])
    return after


def merge(session: Session, object_id: str, other_id: str) -> SegmentedObject:
    """Add the mask of another object, which is deleted; one step of the history.

    Raises:
        PromptError: one of them does not exist or has no mask, or both are the same.
    """
    owner, other, own, theirs = _pair(session, object_id, other_id)
    change = _paint(session, owner, theirs.without(own), Patch.empty(), f"merge {other.name}")
    return session.absorb(owner.id, other.id, change)


def subtract(session: Session, object_id: str, other_id: str) -> SegmentedObject:
    """Take the mask of another object, which stays, from an object's.

    Raises:
        PromptError: as `merge`, or they share no voxel.
    """
    owner, other, own, theirs = _pair(session, object_id, other_id)
    return _change(session, owner, own, own.without(theirs), f"subtract {other.name}")


def set_lock(session: Session, object_id: str, axis: int, index: int, locked: bool) -> SegmentedObject:
    """Lock a slice of an object as it is, or unlock it: nothing changes a locked voxel.

    Args:
        session: whose object it is.
        object_id: the object.
        axis, index: the slice, in the file's voxels.
        locked: which of both.

    Raises:
        PromptError: there is no such slice.
    """
    grid, owner = session.grid, session.get(object_id)
    if not (0 <= axis < 3 and 0 <= index < grid.shape[axis]):
        raise PromptError(f"There is no slice {index} across axis {axis} in an image of shape {grid.shape}.")
    held = [
        n
        for n, each in enumerate(owner.prompts)
        if isinstance(each, Paint) and slice_of_lock(each) == (axis, index)
    ]
    if locked == bool(held):
        return owner
    if not locked:
        return session.delete_prompt(object_id, held[-1])
    first, stop = [0, 0, 0], list(grid.shape)
    first[axis], stop[axis] = index, index + 1
    start, made = _index(first), session.prediction(object_id)
    mask = (Patch.empty() if made is None else made.patch).within((start, _index(stop)))
    what = f"lock {slice_words(session, axis, index)}"
    parts = [Bits.from_patch(Patch(start, part), grid.shape) for part in (mask, ~mask)]
    return session.add_prompt(object_id, Paint(what=what, inside=parts[0], outside=parts[1], locked=True))


def slice_words(session: Session, axis: int, index: int) -> str:
    """A slice as the page counts it: 'axial slice 13'."""
    ras = session.grid.ras
    at = ras.axes.index(axis)
    shown = ras.shape[at] - index if ras.flips[at] else index + 1
    return f"{_PLANES[at]} slice {shown}"


def slice_of_lock(prompt: Paint) -> tuple[int, int] | None:
    """Axis and index of the slice that a prompt locks; None where it locks none."""
    if not prompt.locked:
        return None
    boxes = [bits for bits, _ in prompt.parts]
    low, high = np.min([b.start for b in boxes], axis=0), np.max([b.stop for b in boxes], axis=0)
    thin = [n for n in range(3) if high[n] - low[n] == 1 and boxes[0].shape[n] > 1]
    return (thin[0], int(low[thin[0]])) if thin else None


def locked_slices(owner: SegmentedObject) -> list[tuple[int, int]]:
    """Axis and index of an object's locked slices, in order."""
    found = {slice_of_lock(each) for each in owner.prompts if isinstance(each, Paint)}
    return sorted(place for place in found if place is not None)


def _draw(session: Session, object_id: str, drawn: Patch, positive: bool, what: str) -> SegmentedObject:
    owner, none = session.get(object_id), Patch.empty()
    if not positive and session.prediction(object_id) is None:
        raise PromptError(f"'{owner.name}' has no mask yet; there is nothing to erase.")
    made = _paint(session, owner, *((drawn, none) if positive else (none, drawn)), what)
    if made is None:
        raise PromptError(f"All that was drawn on is locked for '{owner.name}'; unlock the slice first.")
    return session.add_prompt(object_id, made)


def _change(
    session: Session, owner: SegmentedObject, before: Patch, after: Patch, what: str
) -> SegmentedObject:
    made = _paint(session, owner, after.without(before), before.without(after), what)
    if made is None and before.difference(after) is not None:
        raise PromptError(
            f"All that would change of '{owner.name}' ({what}) is locked; unlock the slice first."
        )
    if made is None:
        raise PromptError(f"There is nothing to change: the mask of '{owner.name}' stays as it is ({what}).")
    return session.add_prompt(owner.id, made)


def _paint(
    session: Session, owner: SegmentedObject, inside: Patch, outside: Patch, what: str
) -> Paint | None:
    """Return the voxels as a prompt, without locked ones; None if none is left."""
    shape = session.grid.shape
    locks = [prompt for prompt in owner.prompts if isinstance(prompt, Paint) and prompt.locked]
    locked = Layer(locks, shape).locked
    parts = [Bits.from_patch(part.without(locked), shape) for part in (inside, outside)]
    if parts == [None, None]:
        return None
    return Paint(what=what[:60], inside=parts[0], outside=parts[1])


def _pair(
    session: Session, object_id: str, other_id: str
) -> tuple[SegmentedObject, SegmentedObject, Patch, Patch]:
    """Two objects and their masks."""
    owner, other = session.get(object_id), session.get(other_id)
    if owner.id == other.id:
        raise PromptError(f"'{owner.name}' cannot be combined with itself; choose another object.")
    masks = []
    for each in (owner, other):
        made = session.prediction(each.id)
        if made is None or not made.voxels:
            raise PromptError(f"'{each.name}' has no mask yet; click inside it or paint it first.")
        masks.append(made.patch)
    return owner, other, masks[0], masks[1]


def _index(values: Sequence[int] | NDArray[np.int_]) -> Index:
    i, j, k = (int(value) for value in values)
    return i, j, k


def _check_mm(what: str, mm: float) -> None:
    if not 0 < mm <= MOST_MM:
        raise SettingsError(f"{what} goes from above 0 to {MOST_MM:g} mm; got {mm:g}.")
