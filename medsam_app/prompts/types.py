"""Prompts: points, scribbles, boxes, masks, choices, and painted voxels.

Coordinates are voxel indices (i, j, k) in the file's own axis order. Prompts are immutable; an ordered list
of prompts determines a mask.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index, Patch

Coordinates = tuple[float, float, float]
#: A scribble is converted to at most this many clicks, at least this many voxels apart.
MOST_CLICKS, CLICK_VOXELS = 8, 3.0
#: Most masks that are offered for a first prompt.
MOST_ALTERNATIVES = 4


class _Prompt(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Point(_Prompt):
    """A click: inside the object (positive) or outside it."""

    kind: Literal["point"] = "point"
    coordinates: Coordinates
    positive: bool = True


class Scribble(_Prompt):
    """A freehand line that lies completely inside the object (positive) or outside it.

    The model gets a few clicks along it, all at once; the mask honours every voxel of the line.

    Attributes:
        coordinates: corners of the line, in the order they were drawn.
    """

    kind: Literal["scribble"] = "scribble"
    coordinates: tuple[Coordinates, ...] = Field(min_length=1, max_length=2000)
    positive: bool = True

    def clicks(self) -> tuple[Point, ...]:
        """Return clicks at the midpoints of equal sections of the line, a few voxels apart."""
        corners = np.asarray(self.coordinates)
        arc_length = np.concatenate([[0], np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum()])
        count = int(np.clip(arc_length[-1] // CLICK_VOXELS, 1, MOST_CLICKS))
        distances = (np.arange(count) + 0.5) / count * arc_length[-1]
        points = np.stack([np.interp(distances, arc_length, corners[:, axis]) for axis in range(3)], axis=-1)
        return tuple(Point(coordinates=tuple(point), positive=self.positive) for point in points.tolist())

    def voxels(self, shape: Sequence[int]) -> NDArray[np.intp]:
        """Return the (N, 3) voxels of a volume along the line."""
        corners = np.asarray(self.coordinates)
        parts = [corners[:1]]
        for a, b in pairwise(corners):
            steps = int(np.ceil(2 * np.abs(b - a).max()))
            parts.append(a + (b - a) * np.linspace(0, 1, steps + 1)[1:, None] if steps else b[None])
        voxels = np.floor(np.concatenate(parts) + 0.5).astype(np.intp)
        return np.unique(np.clip(voxels, 0, np.asarray(shape) - 1), axis=0)


class Box(_Prompt):
    """A box around the object, corners included.

    A box whose corners agree along one axis lies on that slice (a flat box): it bounds the object within the
    slice, not its extent across slices.
    """

    kind: Literal["box"] = "box"
    lower: Coordinates
    upper: Coordinates

    @model_validator(mode="before")
    @classmethod
    def _sort_corners(cls, values: object) -> object:
        if isinstance(values, dict) and "lower" in values and "upper" in values:
            lower, upper = values["lower"], values["upper"]
            if len(lower) == 3 == len(upper):
                pairs = [sorted((a, b)) for a, b in zip(lower, upper, strict=True)]
                values = values | {"lower": tuple(p[0] for p in pairs), "upper": tuple(p[1] for p in pairs)}
        return values

    @property
    def slice_axis(self) -> int | None:
        """The axis along which the box has no extent, or None for a 3D box."""
        flat = [axis for axis in range(3) if round(self.lower[axis]) == round(self.upper[axis])]
        return flat[0] if len(flat) == 1 else None


class Bits(_Prompt):
    """Voxels of a volume, stored within their bounding box.

    Attributes:
        shape: voxels of the complete volume along (i, j, k).
        start, stop: corners of the bounding box, `stop` excluded.
        packed: base64 of the zlib-compressed bits inside the box, in C order.
    """

    shape: Index
    start: Index
    stop: Index
    packed: str

    @classmethod
    def from_patch(cls, patch: Patch, shape: Sequence[int]) -> Self | None:
        """Pack a part of a volume of a shape (i, j, k); return None if no voxel is inside."""
        patch = patch.tight()
        if not patch.mask.size:
            return None
        i, j, k = map(int, shape)
        packed = base64.b64encode(zlib.compress(np.packbits(patch.mask).tobytes(), 9)).decode()
        return cls(shape=(i, j, k), start=patch.start, stop=patch.stop, packed=packed)

    def patch(self) -> Patch:
        """Return the unpacked voxels in their bounding box.

        Raises:
            PromptError: there are fewer bits than voxels in the box.
        """
        size = tuple(b - a for a, b in zip(self.start, self.stop, strict=True))
        count = int(np.prod(size))
        limit = (count + 7) // 8
        raw = zlib.decompressobj().decompress(base64.b64decode(self.packed), limit)
        if len(raw) != limit:
            raise PromptError(f"A mask prompt of {size} voxels is cut short; write the prompt file again.")
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=count)
        return Patch(self.start, bits.view(bool).reshape(size))

    def to_array(self) -> NDArray[np.bool_]:
        """Return the mask of the complete volume as (i, j, k) booleans; raises as `patch`."""
        return self.patch().to_array(self.shape)


class MaskPrompt(Bits):
    """A mask to start from or to refine; see `Bits`."""

    kind: Literal["mask"] = "mask"

    @classmethod
    def from_array(cls, mask: NDArray) -> MaskPrompt:
        """Pack an (i, j, k) array whose non-zero voxels are inside.

        Raises:
            PromptError: the array is not 3D or has no voxel inside.
        """
        if mask.ndim != 3:
            raise PromptError(f"A mask prompt must be 3D (i, j, k); got {mask.ndim}D.")
        prompt = cls.from_patch(Patch((0, 0, 0), np.asarray(mask) != 0), mask.shape)
        if prompt is None:
            raise PromptError(
                "The mask given as a prompt is empty; give a mask with at least one voxel inside."
            )
        return prompt


class Paint(_Prompt):
    """Voxels that the user set inside or outside the mask.

    Paint is not passed to the model. It is applied over the mask from the other prompts (see `paint_layer`),
    and stays until a later prompt contradicts it.

    Attributes:
        what: description for menus: 'brush', 'fill holes', ...
        inside, outside: voxels set inside and outside the mask; they have none in common.
        locked: whether later prompts cannot change these voxels.
    """

    kind: Literal["paint"] = "paint"
    what: str = Field(min_length=1, max_length=60)
    inside: Bits | None = None
    outside: Bits | None = None
    locked: bool = False

    @property
    def parts(self) -> list[tuple[Bits, bool]]:
        """Sets of painted voxels with their values: True for inside."""
        return [(bits, value) for bits, value in ((self.inside, True), (self.outside, False)) if bits]


class Choice(_Prompt):
    """The choice of another mask for the first prompt, which directly precedes it.

    Attributes:
        number: number of the alternative by size, from 1.
    """

    kind: Literal["choice"] = "choice"
    number: int = Field(ge=1, le=MOST_ALTERNATIVES)


#: Prompts that the model accepts.
ModelPrompt = Point | Box | MaskPrompt
#: Model prompts, and scribbles not yet converted to clicks.
UserPrompt = ModelPrompt | Scribble
#: User prompts, choices, and painted voxels.
AnyPrompt = UserPrompt | Choice | Paint
#: User prompt in a file or request, distinguished by `kind`.
Prompt = Annotated[UserPrompt, Field(discriminator="kind")]


def locates_object(prompt: AnyPrompt) -> bool:
    """Return whether a prompt marks the object and not only voxels outside it."""
    if isinstance(prompt, Paint):
        return prompt.inside is not None
    if isinstance(prompt, Choice):
        return False
    return not isinstance(prompt, Point | Scribble) or prompt.positive


def without_choices(prompts: Sequence[UserPrompt | Choice]) -> tuple[UserPrompt, ...]:
    """Return the prompts without choices."""
    return tuple(prompt for prompt in prompts if not isinstance(prompt, Choice))


def choice_place(prompts: Sequence[AnyPrompt]) -> int | None:
    """Return the index at which a choice belongs: after the first prompt that locates the object.

    None if there is no such prompt, or it is a mask or painted, which the model did not segment.
    """
    for number, prompt in enumerate(prompts):
        if locates_object(prompt):
            return None if isinstance(prompt, MaskPrompt | Paint) else number + 1
    return None


def as_clicks(prompts: Sequence[UserPrompt]) -> tuple[ModelPrompt, ...]:
    """Return the prompts with scribbles converted to clicks."""
    model_prompts: list[ModelPrompt] = []
    for prompt in prompts:
        model_prompts += prompt.clicks() if isinstance(prompt, Scribble) else [prompt]
    return tuple(model_prompts)


def with_choice(prompts: Sequence[AnyPrompt], number: int) -> list[AnyPrompt]:
    """Return the prompts with a choice after the first that locates the object.

    Raises:
        PromptError: the number cannot be one, or the first prompt is no click, scribble or box.
    """
    place = choice_place(prompts)
    if place is None:
        raise PromptError(
            "A mask can be chosen only for a click, a scribble or a box that comes first; leave the choice "
            "out, or start with one of them."
        )
    return [*prompts[:place], choice_of(number), *prompts[place:]]


def choice_of(number: int) -> Choice:
    """Return a choice; raise `PromptError` for a number that cannot be one."""
    if not 1 <= number <= MOST_ALTERNATIVES:
        raise PromptError(
            f"At most {MOST_ALTERNATIVES} masks are offered, numbered by size from 1; got {number}."
        )
    return Choice(number=number)


def can_choose(prompts: Sequence[AnyPrompt]) -> bool:
    """Return whether a choice can be made: nothing but a choice follows the first prompt."""
    place = choice_place(prompts)
    return place is not None and all(isinstance(prompt, Choice) for prompt in prompts[place:])


def check_prompts(prompts: Sequence[AnyPrompt], grid: Grid) -> None:
    """Raise `PromptError` for the first prompt that does not fit the grid or its place."""
    for number, prompt in enumerate(prompts, start=1):
        if isinstance(prompt, Choice):
            if choice_place(prompts) != number - 1:
                raise PromptError(
                    f"Prompt {number} chooses a mask, but it does not follow the first click or box of the "
                    "object; take it out, or move it there."
                )
            continue
        if isinstance(prompt, MaskPrompt | Paint):
            masks = [prompt] if isinstance(prompt, MaskPrompt) else [bits for bits, _ in prompt.parts]
            for mask in masks:
                if mask.shape != tuple(grid.shape):
                    raise PromptError(
                        f"Prompt {number} is a mask of shape {mask.shape}, but the image has shape "
                        f"{tuple(grid.shape)}; give a mask on the image's own grid."
                    )
            continue
        corners = [prompt.lower, prompt.upper] if isinstance(prompt, Box) else list(_places(prompt))
        for corner in corners:
            if not grid.contains(corner):
                last = tuple(n - 1 for n in grid.shape)
                what = "box corner" if isinstance(prompt, Box) else prompt.kind
                raise PromptError(
                    f"Prompt {number}, a {what} at {format_voxel(corner)}, lies outside the image, "
                    f"whose voxels run from (0, 0, 0) to {last}; click inside the image."
                )


def _places(prompt: Point | Scribble) -> Sequence[Coordinates]:
    return prompt.coordinates if isinstance(prompt, Scribble) else [prompt.coordinates]


def prompts_from_arrays(
    points: ArrayLike | None,
    point_labels: ArrayLike | None,
    boxes: ArrayLike | None,
    mask_input: NDArray | None,
) -> list[Point | Box | MaskPrompt]:
    """Return prompts from arrays: the mask first, then the boxes, then the points.

    Args:
        points: (N, 3) voxel indices (i, j, k).
        point_labels: (N,) 1 = inside, 0 = outside; all inside by default.
        boxes: (M, 2, 3) opposite corners in voxel indices, both included.
        mask_input: (i, j, k) mask.

    Raises:
        PromptError: an array has a wrong shape, or a label is neither 0 nor 1.
    """
    prompts: list[Point | Box | MaskPrompt] = []
    if mask_input is not None:
        prompts.append(MaskPrompt.from_array(np.asarray(mask_input)))
    if boxes is not None:
        corners = np.asarray(boxes, dtype=float)
        if corners.ndim != 3 or corners.shape[1:] != (2, 3):
            raise PromptError(f"Boxes must be an array of shape (M, 2, 3); got {corners.shape}.")
        prompts += [Box(lower=tuple(low), upper=tuple(high)) for low, high in corners.tolist()]
    if points is None:
        if point_labels is not None:
            raise PromptError("Point labels were given without points; give points of shape (N, 3) too.")
        return prompts
    voxels = np.asarray(points, dtype=float)
    if voxels.ndim != 2 or voxels.shape[1] != 3:
        raise PromptError(f"Points must be an array of shape (N, 3) in voxel indices; got {voxels.shape}.")
    labels = np.ones(len(voxels)) if point_labels is None else np.asarray(point_labels)
    if labels.shape != (len(voxels),) or not np.isin(labels, (0, 1)).all():
        raise PromptError(
            f"Point labels must be {len(voxels)} values, 1 (inside) or 0 (outside), one for each point; "
            f"got {labels.tolist()}."
        )
    return prompts + [
        Point(coordinates=tuple(voxel), positive=bool(label))
        for voxel, label in zip(voxels.tolist(), labels.tolist(), strict=True)
    ]


def format_voxel(coordinates: Sequence[float]) -> str:
    """Format voxel indices for a message: '(12, 7.5, 30)'."""
    return "(" + ", ".join(f"{value:g}" for value in coordinates) + ")"
