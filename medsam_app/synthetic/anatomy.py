"""Random label maps of tissues, organs, vessels, cells and lesions, with a target.

Every voxel has one label. Labels with the same intensity statistics (the cells of a tissue, the lesions of an
organ) are recorded as kin, so that a model has to separate touching objects of similar intensity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_app.synthetic.lesion_shapes import SHAPES, Shape, Vector, blob, lines, tissue
from medsam_app.synthetic.sampler import Draws, whole

#: Shapes of single objects, with their relative frequencies.
SINGLE = {"blob": 3, "tube": 1, "sheet": 1, "cloud": 1, "hollow": 1}


class Scene:
    """Label map to which objects are added.

    Attributes:
        labels: (n, n, n) int64.
        count: number of labels so far; the next object gets this label.
        kin: groups of labels with the same intensity statistics.
        target: labels of the object to segment.
    """

    def __init__(self, labels: Tensor, count: int) -> None:
        self.labels, self.count = labels, count
        self.kin: list[list[int]] = []
        self.target: list[int] = []

    @property
    def n(self) -> int:
        """Voxels per side."""
        return self.labels.shape[0]

    def add(self, shape: Shape, within: list[int] | None = None) -> int:
        """Give the voxels of a shape a new label and return it.

        Args:
            shape: the shape.
            within: labels that the shape may overwrite; None for all.
        """
        here, inside = self.labels[shape.box], shape.field < 0
        if within is not None:
            inside &= label_in(here, within)
        cover(here, inside, self.count)
        self.count += 1
        return self.count - 1

    def mask(self) -> Tensor:
        """Return the (n, n, n) booleans of the target."""
        return label_in(self.labels, self.target)


def cover(labels: Tensor, inside: Tensor, label: int | Tensor) -> None:
    """Write a label, or a tensor of labels, to voxels in place.

    New labels must be greater than all earlier ones: taking the maximum is faster than indexing by a mask.
    """
    torch.maximum(labels, inside * label, out=labels)


def label_in(labels: Tensor, values: list[int]) -> Tensor:
    """Return booleans of the shape of `labels`: whether a voxel has one of `values`."""
    matches = labels == values[0]
    for label in values[1:]:
        matches |= labels == label
    return matches


def _one(draws: Draws, labels: list[int]) -> list[int]:
    return [labels[draws.integer(0, len(labels) - 1)]]


def background(draws: Draws, n: int) -> Scene:
    """Return a scene of broad tissues, sometimes with a cloud inside, sometimes a body surrounded by air."""
    tissues = draws.integer(1, 5)
    fields = [draws.smooth(n, draws.integer(1, 5)) for _ in range(tissues)]
    scene = Scene(torch.stack(fields).max(0).indices, tissues)
    if draws.chance(0.15):
        scene.add(Shape(whole(n), tissue(draws, n, whole(n)) - draws.uniform(-1, 0.5), 1.0))
    if draws.chance(0.3):
        body = blob(draws, n, 0.3 * draws.normals(3), draws.uniform(0.8, 1.2))
        air = torch.ones_like(scene.labels, dtype=torch.bool)
        air[body.box] = body.field >= 0
        scene.add(Shape(whole(n), -air.float(), 1.0))
    return scene


def place(draws: Draws, *, target: bool) -> Vector:
    """Return a random centre: anywhere, or for a target near the centre of the window."""
    return draws.uniform(0, 0.45) * draws.direction() if target else 2 * draws.uniforms(3) - 1


def single(draws: Draws, scene: Scene, centre: Vector, size: float) -> list[int]:
    """Add one object of a random shape, sometimes with a core; return the labels of one part or both."""
    names, weights = list(SINGLE), np.array(list(SINGLE.values()))
    shape = SHAPES[str(draws.choices.choice(names, p=weights / weights.sum()))](draws, scene.n, centre, size)
    parts = [scene.add(shape)]
    if draws.chance(0.25):
        core = Shape(shape.box, shape.field + draws.uniform(0.15, 0.5), shape.depth)
        parts.append(scene.add(core, within=parts))
    return parts if draws.chance(0.5) else _one(draws, parts)


def organ(draws: Draws, scene: Scene, centre: Vector, size: float) -> list[int]:
    """Add an organ with one or several lesions.

    Return the label of a lesion, those of all lesions, or the organ's with or without them.
    """
    size = max(size, 0.4)
    parts = [scene.add(blob(draws, scene.n, centre, size, stretch=0.2))]
    for _ in range(draws.integer(1, 4)):
        at = centre + draws.uniform(0, 0.6) * size * draws.direction()
        lesion = blob(draws, scene.n, at, max(3.5 / scene.n, size * draws.log_uniform(0.12, 0.4)))
        parts.append(scene.add(lesion, within=parts))
    lesions = parts[1:]
    scene.kin.append(lesions)
    return (_one(draws, lesions), lesions, parts[:1], parts)[draws.integer(0, 3)]


def bunch(draws: Draws, scene: Scene, centre: Vector, size: float) -> list[int]:
    """Add touching blobs of similar intensity, sometimes with walls between them; return one of their labels.

    Where blobs overlap, a voxel belongs to the blob in which it lies deepest.
    """
    n, count = scene.n, draws.integer(3, 8)
    radius = max(size / 2, 6 / n)
    centres, radii = [centre], [radius * draws.uniform(0.7, 1.3)]
    best = torch.zeros(n, n, n, device=draws.device)
    owner = torch.zeros(n, n, n, dtype=torch.int64, device=draws.device)
    for index in range(1, count + 1):
        shape = blob(draws, n, centres[-1], radii[-1], bumps=0.12, stretch=0.12)
        here = best[shape.box]
        cover(owner[shape.box], shape.field < here, index)
        torch.minimum(here, shape.field, out=here)
        next_to = draws.integer(0, len(centres) - 1)
        radii.append(radius * draws.uniform(0.7, 1.3))
        apart = draws.uniform(0.75, 0.95) * (radii[next_to] + radii[-1])
        centres.append(centres[next_to] + apart * draws.direction())
    labels = list(range(scene.count, scene.count + count))
    cover(scene.labels, owner > 0, owner + (scene.count - 1))
    scene.count += count
    scene.kin.append(labels)
    if draws.chance(0.4):
        cover(scene.labels, seams(owner), scene.count)
        scene.count += 1
    return _one(draws, labels)


def seams(cells: Tensor) -> Tensor:
    """Return (n, n, n) booleans: voxels of a cell (1, 2, ...) whose next voxel along an axis differs.

    Only voxels between two cells count, not those between a cell and the background (0).
    """
    walls = torch.zeros_like(cells, dtype=torch.bool)
    for axis in range(3):
        voxels, next_voxels = (cells.narrow(axis, start, cells.shape[axis] - 1) for start in (0, 1))
        walls.narrow(axis, 0, cells.shape[axis] - 1).logical_or_(
            (voxels != next_voxels) & (voxels > 0) & (next_voxels > 0)
        )
    return walls


def voronoi(draws: Draws, n: int, centres: NDArray[np.float64]) -> Tensor:
    """Return the cells around centres (count, 3) in the window: (n, n, n) int64 in 1..count.

    Distances are measured in stretched and bent coordinates, so that walls are not flat. A random amount is
    added for each centre (a power diagram), so that cells differ in size.
    """
    count = len(centres)
    stretch, cell_size = np.exp(0.25 * draws.normals(3)), count ** (-1 / 3)
    bend = draws.uniform(0, 0.25) * cell_size
    coordinates = [
        ((line + bend * draws.smooth(n, 4)) * float(factor)).flatten()
        for line, factor in zip(lines(whole(n), n, np.zeros(3), draws.device), stretch, strict=True)
    ]
    offsets = (draws.uniform(0, 0.5) * cell_size) ** 2 * draws.normals(count)
    # The squared distance minus the square of the position is linear in the position.
    slopes = torch.tensor(-2 * centres * stretch, dtype=torch.float32, device=draws.device)
    level = ((centres * stretch) ** 2).sum(axis=1) + offsets
    level = torch.tensor(level, dtype=torch.float32, device=draws.device)[:, None]
    return torch.addmm(level, slopes, torch.stack(coordinates)).min(0).indices.view(n, n, n) + 1


def cells(draws: Draws, scene: Scene, centre: Vector, size: float) -> list[int]:
    """Add Voronoi cells to the complete window or to an organ.

    The cells have walls or different intensities. Return the label of the cell at the centre, or also those
    of its nearest neighbours.
    """
    n, count = scene.n, draws.integer(6, 28)
    centres = np.concatenate([centre[None], 1.1 * (2 * draws.choices.random((count - 1, 3)) - 1)])
    diagram = voronoi(draws, n, centres)
    first = scene.count
    labels = diagram + (first - 1)
    scene.count += count
    if draws.chance(0.65):
        cover(labels, seams(diagram), scene.count)
        scene.count += 1
        scene.kin.append(list(range(first, first + count)))
    if draws.chance(0.5):
        organ = blob(draws, n, centre, max(size, 0.5), stretch=0.2)
        cover(scene.labels[organ.box], organ.field < 0, labels[organ.box])
    else:
        scene.labels = labels
    nearest = np.argsort(np.linalg.norm(centres - centre, axis=1))
    return [first + int(cell) for cell in nearest[: 1 if draws.chance(0.75) else draws.integer(2, 3)]]


def random_anatomy(draws: Draws, n: int) -> Scene:
    """Return a synthetic volume with one or more target objects."""
    scene = background(draws, n)
    if draws.chance(0.1):  # a complete tissue, without the objects inside it
        scene.target = [draws.integer(0, scene.count - 1)]
    count = draws.integer(1, 5)
    target_index = draws.integer(0, count - 1)
    for index in range(count):
        target = index == target_index and not scene.target
        centre = place(draws, target=target)
        size = draws.log_uniform(0.1, 1.5 if target and draws.chance(0.3) else 0.8)
        if target:
            scene.target = _kind(draws)(draws, scene, centre, size)
        else:
            single(draws, scene, centre, size)
    return scene


def _kind(draws: Draws) -> Callable[[Draws, Scene, Vector, float], list[int]]:
    """Return the function that adds a random kind of target."""
    share = draws.uniform(0, 1)
    return single if share < 0.6 else organ if share < 0.75 else bunch if share < 0.88 else cells
