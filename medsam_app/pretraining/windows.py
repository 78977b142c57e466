"""Training windows of the embedded model from real and synthetic volumes.

Sources are labelled cases, head label maps and synthetic anatomy. The data folder is described by its
`manifest.json`; training opens only cases whose split is 'train'.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam_app.datasets.cases import manifest_cases
from medsam_app.errors import VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import Roi, read_roi
from medsam_app.io.loading import load_volume
from medsam_app.pretraining.supervoxel_objects import pseudo_object
from medsam_app.synthetic.anatomy import label_in, random_anatomy
from medsam_app.synthetic.rendering import degrade, painted
from medsam_app.synthetic.sampler import Draws

#: Smallest object in voxels of the file; smaller ones are mostly noise.
MIN_OBJECT_VOXELS = 100
#: A window whose target has fewer voxels than this is drawn again.
MIN_TARGET_VOXELS = 12
#: A window is drawn again if its target fills a larger fraction. Targets that nearly fill a window are
#: needed, since the first window of a click may lie inside a large object.
MOST_FILLED = 0.97
#: Attempts to draw a window before the source is an error.
MOST_DRAWS = 1000


@dataclass
class Window:
    """Training example: image, validity and target, each (n, n, n)."""

    image: Tensor
    valid: Tensor
    target: Tensor


@dataclass
class LabelledCase:
    """Volume with its label map, in the file's axis order."""

    dataset: str
    name: str
    image: NDArray
    labels: NDArray
    grid: Grid

    def objects(self) -> list[int]:
        """Return the label values with enough voxels."""
        counts = np.bincount(self.labels.ravel())
        return [int(v) for v in np.flatnonzero(counts) if v > 0 and counts[v] >= MIN_OBJECT_VOXELS]


@dataclass
class LabelledObject:
    """Label of a case with its bounding box in voxels of the file."""

    case: LabelledCase
    value: int
    box: tuple[slice, slice, slice]


def load_cases(folder: Path, split: str) -> list[LabelledCase]:
    """Load all cases of one split of a folder with a manifest; the list may be empty.

    Raises:
        MedsamError: the manifest or a case cannot be read.
    """
    cases = []
    for case in manifest_cases(folder):
        if case.split == split:
            volume, labels = case.load()
            cases.append(LabelledCase(case.dataset, case.case, volume.array, labels, volume.grid))
    return cases


def _no_window(n: int, what: str, why: str) -> VolumeError:
    return VolumeError(
        f"Not one of {MOST_DRAWS} windows of {n} voxels showed {what}, perhaps since {why}; "
        "mend the data, or take this source out of the recipe's shares."
    )


def _permuted(window: Window, draws: Draws) -> Window:
    """Flip and permute axes at random, so that the model does not depend on orientation."""
    order = draws.choices.permutation(3).tolist()
    flips = [axis for axis in range(3) if draws.chance(0.5)]
    image, valid, target = (
        torch.flip(t.permute(order), flips).contiguous() for t in (window.image, window.valid, window.target)
    )
    return Window(image, valid, target)


class RealWindows:
    """Windows around the labelled objects of real cases.

    The weight of a dataset grows with the square root of its number of objects, so that a large dataset does
    not dominate.
    """

    def __init__(self, cases: list[LabelledCase]) -> None:
        self.by_dataset: dict[str, list[LabelledObject]] = defaultdict(list)
        for case in cases:
            boxes = ndimage.find_objects(case.labels)
            self.by_dataset[case.dataset] += [
                LabelledObject(case, value, boxes[value - 1]) for value in case.objects()
            ]
        self.names = sorted(name for name, objects in self.by_dataset.items() if objects)
        weights = np.array([min(8.0, len(self.by_dataset[name]) ** 0.5) for name in self.names])
        self.cumulative = np.cumsum(weights / weights.sum())

    def draw(self, draws: Draws, n: int) -> Window:
        """Return a random window of n voxels per side."""
        for _ in range(MOST_DRAWS):
            index = int(np.searchsorted(self.cumulative, draws.uniform(0, 0.9999)))
            objects = self.by_dataset[self.names[index]]
            window = self._window(draws, n, objects[draws.integer(0, len(objects) - 1)])
            if MIN_TARGET_VOXELS <= int(window.target.sum()) <= MOST_FILLED * n**3:
                return window
        raise _no_window(n, "a labelled object", "the labels are too thin for them")

    def _window(self, draws: Draws, n: int, chosen: LabelledObject) -> Window:
        case, box = chosen.case, chosen.box
        # The system allocates only the touched pages of the array, those of the object's box.
        inside = np.zeros(case.labels.shape, dtype=bool)
        inside[box] = case.labels[box] == chosen.value
        low, high = (np.array(ends) for ends in zip(*((s.start, s.stop - 1) for s in box), strict=True))
        extent = float(((high - low + 1) * case.grid.spacing).max())
        spacing = extent / (n * draws.log_uniform(0.06, 2.2))
        coarsest = float((np.array(case.grid.shape) * case.grid.spacing).max()) * 1.1 / n
        spacing = float(np.clip(spacing, 0.5 * case.grid.spacing.min(), min(8.0, coarsest)))
        if draws.chance(0.5):
            centre = (low + high) / 2
        else:
            voxels = np.flatnonzero(inside[box])
            voxel = voxels[draws.integer(0, len(voxels) - 1)]
            centre = np.array(np.unravel_index(voxel, inside[box].shape)) + low
        jitter = draws.normals(3) * spacing * n * 0.12 / case.grid.spacing
        roi = Roi.centred(
            case.grid.ras.points_from_file(centre + jitter), (spacing,) * 3, (n, n, n), case.grid.ras
        )
        image, valid = read_roi(case.image, roi)
        target, _ = read_roi(inside, roi)
        if draws.chance(0.125):  # like a file saved with a display window applied
            values = image[valid].numpy()
            darkest, brightest = np.quantile(
                values[:: max(1, len(values) // 8192)], np.sort(draws.uniforms(2))
            )
            if brightest > darkest:
                image = image.clamp(float(darkest), float(brightest))
        image, valid, target = (t.to(draws.device) for t in (image, valid, target))
        if draws.chance(0.5):
            image = degrade(draws, image)
        return _permuted(Window(image, valid, (target > 0.5) & valid), draws)


class PseudoWindows:
    """Windows of real cases around regions with a visible outline."""

    def __init__(self, cases: list[LabelledCase]) -> None:
        self.by_dataset: dict[str, list[LabelledCase]] = defaultdict(list)
        for case in cases:
            self.by_dataset[case.dataset].append(case)
        self.names = sorted(self.by_dataset)

    def draw(self, draws: Draws, n: int) -> Window:
        """Return a random window of n voxels per side."""
        for _ in range(MOST_DRAWS):
            cases = self.by_dataset[self.names[draws.integer(0, len(self.names) - 1)]]
            case = cases[draws.integer(0, len(cases) - 1)]
            coarsest = float((np.array(case.grid.shape) * case.grid.spacing).max()) * 1.1 / n
            finest = 0.75 * float(case.grid.spacing.min())
            spacing = min(draws.log_uniform(finest, max(finest, min(4.0, coarsest))), coarsest)
            centre = draws.uniforms(3) * (np.array(case.grid.shape) - 1)
            points = case.grid.ras.points_from_file(centre)
            image, valid = read_roi(case.image, Roi.centred(points, (spacing,) * 3, (n, n, n), case.grid.ras))
            target = pseudo_object(draws, image, valid)
            if target is None:
                continue
            image, valid, target = (t.to(draws.device) for t in (image, valid, target))
            if draws.chance(0.5):
                image = degrade(draws, image)
            return _permuted(Window(image, valid, target), draws)
        raise _no_window(n, "anything with an outline", "the images are flat")


class HeadWindows:
    """Windows of real head label maps painted with random intensities.

    Args:
        files: label maps of heads.
        device: device of the maps and of the windows.

    Raises:
        VolumeError: a file is not a label map.
    """

    def __init__(self, files: list[Path], device: torch.device | str = "cpu") -> None:
        self.maps: list[tuple[Tensor, int]] = []
        for file in files:
            labels, count = _head_map(file)
            self.maps.append((torch.from_numpy(labels).to(device), count))

    def draw(self, draws: Draws, n: int) -> Window:
        """Return a random window of n voxels per side."""
        for _ in range(MOST_DRAWS):
            labels, count = self.maps[draws.integer(0, len(self.maps) - 1)]
            step, device = draws.log_uniform(0.6, 3.5), labels.device
            lines, inside = [], []
            for size, part in zip(labels.shape, 0.15 + 0.7 * draws.uniforms(3), strict=True):
                steps = torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2
                line = float(part * size) + step * steps
                inside.append((line >= 0) & (line <= size - 1))
                lines.append(line.round().long().clamp(0, size - 1))
            window = labels[lines[0][:, None, None], lines[1][:, None], lines[2]].long()
            valid = inside[0][:, None, None] & inside[1][:, None] & inside[2]
            present = torch.bincount(window[valid], minlength=count).tolist()
            usable = [value for value in range(1, count) if present[value] >= 2 * MIN_TARGET_VOXELS]
            if not usable:
                continue
            merged = 1 if draws.chance(0.7) else min(len(usable), draws.integer(2, 4))
            chosen = [usable[draws.integer(0, len(usable) - 1)] for _ in range(merged)]
            if sum(present[value] for value in set(chosen)) > MOST_FILLED * n**3:
                continue
            image = painted(draws, window, count, chosen)
            if image is not None:
                return _permuted(Window(image, valid, label_in(window, chosen) & valid), draws)
        raise _no_window(n, "a label of a head", "the label maps are nearly empty")


def _head_map(file: Path) -> tuple[NDArray[np.uint8], int]:
    """Return a label map with its labels renumbered from 0, and the number of labels."""
    values = np.asarray(load_volume(file).array)
    labels = values.astype(np.int64)
    is_label_map = int(labels.min()) >= 0 and bool((labels == values).all())
    present = np.flatnonzero(np.bincount(labels.ravel()) if is_label_map else np.zeros(1))
    if not 2 <= len(present) <= 256:
        raise VolumeError(f"{file} is no map of 2 to 256 labels, whole numbers from 0; take it out.")
    compact = np.zeros(int(present[-1]) + 1, dtype=np.uint8)
    compact[present] = np.arange(len(present))
    return compact[labels], len(present)


class SyntheticWindows:
    """Windows of random anatomy."""

    def draw(self, draws: Draws, n: int) -> Window:
        """Return a random window of n voxels per side."""
        while True:
            scene = random_anatomy(draws, n)
            target = scene.mask()
            if not MIN_TARGET_VOXELS <= int(target.sum()) <= MOST_FILLED * n**3:
                continue
            image = painted(draws, scene.labels, scene.count, scene.target, scene.kin)
            if image is not None:
                return Window(image.contiguous(), torch.ones_like(target), target)


class Source(Protocol):
    """Source of random windows."""

    def draw(self, draws: Draws, n: int) -> Window:
        """Return a random window of n voxels per side."""


class Mixture:
    """Windows from several sources in fixed shares.

    Args:
        folder: data with a manifest, or None for synthetic windows alone.
        shares: relative frequency of 'real', 'pseudo', 'heads' and 'synthetic'.
        device: device on which windows are created and returned. Files are read on the CPU.
    """

    def __init__(
        self, folder: Path | None, shares: dict[str, float], device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.sources: list[tuple[float, Source]] = []
        self._cases: list[LabelledCase] | None = None
        total = 0.0
        for name, share in shares.items():
            if share <= 0 or (folder is None and name != "synthetic"):
                continue
            total += share
            self.sources.append((total, self._source(name, folder)))
        self.total = total

    def _source(self, name: str, folder: Path | None) -> Source:
        if name == "synthetic" or folder is None:
            return SyntheticWindows()
        if name == "heads":
            return HeadWindows(sorted((folder / "head_label_maps").glob("*.nii.gz")), self.device)
        self._cases = self._cases or load_cases(folder, "train")
        return RealWindows(self._cases) if name == "real" else PseudoWindows(self._cases)

    def draw(self, seed: int, n: int) -> Window:
        """Return the window with n voxels per side of a seed; reproducible on the same kind of device."""
        draws = Draws(seed, self.device)
        position = draws.uniform(0, self.total)
        source = next((source for limit, source in self.sources if position <= limit), self.sources[-1][1])
        return source.draw(draws, n)
