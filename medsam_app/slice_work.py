"""The slices of one object while a prompt is worked in: which is asked first, what is kept, what goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medsam_app import compliance
from medsam_app.engine import AnyPrompt, Progress
from medsam_app.geometry import Grid
from medsam_app.prediction import State
from medsam_app.prompts import Box, MaskPrompt, Point
from medsam_app.propagation import Propagation, SliceMask, SlicePrompt, propagate
from medsam_app.roi import Index, in_file_order

#: Pixels kept around the mask of each slice, and slices kept beyond the first and last.
ROOM, BEYOND = 12, 2


class Slices(Protocol):
    """Where slices come from and who is asked about them."""

    settings: Propagation

    def look(self, axis: int, number: int, window: tuple[float, float], prompt: SlicePrompt) -> SliceMask:
        """The mask of one slice across an axis of the file."""
        ...

    def slice_of(self, axis: int, number: int) -> NDArray:
        """(rows, columns) raw intensities."""
        ...


class SliceWork:
    """Masks of the slices of one object.

    Args:
        slices: where slices come from.
        grid: the volume's grid.
        window: intensities that the model is shown.
        prompts: all of the object's.
        before: what the prompts before the last gave.
        progress: told about every slice.
    """

    def __init__(
        self,
        slices: Slices,
        grid: Grid,
        window: tuple[float, float],
        prompts: tuple[AnyPrompt, ...],
        before: State | None,
        progress: Progress | None,
    ) -> None:
        self.source = slices
        self.grid = grid
        self.window = window
        self.prompts = prompts
        self.progress = progress
        self.axis = slice_axis(prompts, grid)
        self.plane = [axis for axis in range(3) if axis != self.axis]
        self.slices: dict[int, SliceMask] = self._unpacked(before) if before is not None else {}
        self.before = {number: each.mask for number, each in self.slices.items()}

    def ask(self, newest: Point | Box) -> None:
        """Work in the newest prompt: its slice first, then both directions."""
        if isinstance(newest, Box) and newest.slice_axis is None:
            self.slices, self.before = {}, {}
        key = self._key_slice(newest)
        self.slices[key] = self._look(key, self._own_prompt(key))
        origin = self._origin(key)
        if not self.slices[key].mask.any():  # the object does not reach this slice, nor those behind it
            self._forget(key, 1 if key >= origin else -1)
            return
        for direction, end in self._ends(key):
            run = range(key + direction, end + direction, direction)
            found, ended = propagate(
                key,
                run,
                self.slices,
                look=self._look,
                intensities=lambda number: self.source.slice_of(self.axis, number),
                settings=self.source.settings,
                before=self.before,
            )
            self.slices.update(found)
            shrinking = isinstance(newest, Point) and not newest.positive
            if ended and shrinking and (key - origin) * direction > 0:
                self._forget(key + direction * (len(found) + 1), direction)

    def _origin(self, key: int) -> int:
        """The slice where the object surely is: of its first prompt, or of a given mask's largest area."""
        first = self.prompts[0]
        if not isinstance(first, MaskPrompt):
            return self._key_slice(first)
        return max(self.before, key=lambda number: int(self.before[number].sum()), default=key)

    def _ends(self, key: int) -> list[tuple[int, int]]:
        """Directions and the last slice of each: the bounds, or halfway to the next prompted slice."""
        first, last = self._bounds()
        others = {self._key_slice(p) for p in self.prompts[:-1] if not isinstance(p, MaskPrompt)} - {key}
        above = [other for other in others if other > key and other in self.before]
        below = [other for other in others if other < key and other in self.before]
        upper = key + (min(above) - key) // 2 if above else last
        lower = key - (key - max(below)) // 2 if below else first
        return [(1, upper), (-1, lower)]

    def _forget(self, number: int, direction: int) -> None:
        """Drop the slices from one on in a direction."""
        self.slices = {n: each for n, each in self.slices.items() if (n - number) * direction < 0}

    def _look(self, number: int, prompt: SlicePrompt) -> SliceMask:
        if self.progress is not None:
            self.progress(f"Slice {number}", 0.0)
        return self.source.look(self.axis, number, self.window, prompt)

    def _own_prompt(self, number: int) -> SlicePrompt:
        """All that was said of one slice."""
        points = [p for p in self.prompts if isinstance(p, Point) and self._key_slice(p) == number]
        box = None
        for prompt in self.prompts:
            if (
                isinstance(prompt, Box)
                and prompt.lower[self.axis] - 0.5 <= number <= prompt.upper[self.axis] + 0.5
            ):
                corners = (prompt.lower, prompt.upper)
                box = np.array([corner[axis] for corner in corners for axis in self.plane], dtype=np.float64)
        earlier = self.slices.get(number)
        if earlier is not None and not earlier.mask.any():
            earlier = None
        return SlicePrompt(
            points=np.array([[p.coordinates[axis] for axis in self.plane] for p in points]).reshape(-1, 2),
            labels=np.array([int(p.positive) for p in points], dtype=np.int64),
            box=box,
            earlier=None if earlier is None else earlier.logits,
        )

    def _key_slice(self, prompt: Point | Box) -> int:
        if isinstance(prompt, Point):
            at = prompt.coordinates[self.axis]
        else:
            at = (prompt.lower[self.axis] + prompt.upper[self.axis]) / 2
        return int(np.clip(np.floor(at + 0.5), 0, self.grid.shape[self.axis] - 1))

    def _bounds(self) -> tuple[int, int]:
        """First and last slice that solid boxes allow."""
        low, high = 0, self.grid.shape[self.axis] - 1
        solid = [p for p in self.prompts if isinstance(p, Box) and p.slice_axis is None]
        if solid:
            low = max(low, min(int(np.ceil(box.lower[self.axis] - 0.5)) for box in solid))
            high = min(high, max(int(np.floor(box.upper[self.axis] + 0.5)) for box in solid))
        return low, high

    def _unpacked(self, state: State) -> dict[int, SliceMask]:
        """Masks by slice of a state's logits."""
        start, logits = in_file_order(state.logits, state.roi)
        shape = tuple(self.grid.shape[axis] for axis in self.plane)
        found = {}
        for offset in range(logits.shape[self.axis]):
            crop = logits.take(offset, axis=self.axis)
            if (crop > 0).any():
                full = np.full(shape, compliance.EXCLUDED, dtype=np.float32)
                rows, columns = (slice(start[a], start[a] + logits.shape[a]) for a in self.plane)
                full[rows, columns] = crop
                found[start[self.axis] + offset] = SliceMask(full, state.score)
        return found

    def gathered(self) -> tuple[Index, NDArray[np.float32]]:
        """Start and (i, j, k) logits of the box around the masks and the clicks."""
        numbers = sorted(number for number, each in self.slices.items() if each.mask.any())
        marks = [p.coordinates for p in self.prompts if isinstance(p, Point)]
        marks += [corner for p in self.prompts if isinstance(p, Box) for corner in (p.lower, p.upper)]
        low, high = np.min(marks, axis=0), np.max(marks, axis=0)
        if numbers:
            low[self.axis] = min(low[self.axis], numbers[0])
            high[self.axis] = max(high[self.axis], numbers[-1])
            for number in numbers:
                where = np.nonzero(self.slices[number].mask)
                for axis, at in zip(self.plane, where, strict=True):
                    low[axis], high[axis] = min(low[axis], at.min()), max(high[axis], at.max())
        room = np.full(3, ROOM)
        room[self.axis] = BEYOND
        shape = np.asarray(self.grid.shape)
        start = np.clip(np.floor(low) - room, 0, shape - 1).astype(int)
        stop = np.clip(np.ceil(high) + 1 + room, 1, shape).astype(int)
        logits = np.full(stop - start, compliance.EXCLUDED, dtype=np.float32)
        rows, columns = (slice(start[a], stop[a]) for a in self.plane)
        for number in numbers:
            place: list[slice | int] = [slice(None)] * 3
            place[self.axis] = number - start[self.axis]
            logits[tuple(place)] = self.slices[number].logits[rows, columns]
        return (int(start[0]), int(start[1]), int(start[2])), logits

    def quality(self) -> float:
        """Mean predicted quality of the slices, larger ones counting more."""
        areas = np.array([each.mask.sum() for each in self.slices.values()], dtype=np.float64)
        if not areas.sum():
            return 0.0
        return float(np.average([each.quality for each in self.slices.values()], weights=areas))


def slice_axis(prompts: Sequence[AnyPrompt], grid: Grid) -> int:
    """The axis of the file across which slices are taken; see the module."""
    for prompt in prompts:
        if isinstance(prompt, Box) and prompt.slice_axis is not None:
            return prompt.slice_axis
    spacing = np.asarray(grid.spacing)
    coarsest = int(spacing.argmax())
    return coarsest if spacing[coarsest] > 1.05 * np.median(spacing) else grid.ras.axes[2]
