"""Windows to train the embedded model on: real labelled cases, head label maps, synthetic anatomy.

The folder of data is described by its `manifest.json`; only cases whose split is 'train' are opened.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_app.geometry import Grid
from medsam_app.pseudo_objects import pseudo_object
from medsam_app.roi import Roi, read_roi
from medsam_app.synthesis import Draws, degrade, paint, random_anatomy
from medsam_app.volume import load_mask, load_volume

#: Objects smaller than this many voxels of the file teach nothing but noise.
MIN_OBJECT_VOXELS = 100
#: A window whose target has fewer voxels than this is drawn again.
MIN_TARGET_VOXELS = 12
#: A window that its target fills more than this is drawn again; objects larger than a window must be
#: seen in training, since the first window of a click may lie inside one.
MOST_FILLED = 0.97


@dataclass
class Window:
    """One training example: image and target (n, n, n), and which voxels lie inside the volume."""

    image: Tensor
    valid: Tensor
    target: Tensor


@dataclass
class LabelledCase:
    """A volume with its label map, in the file's axis order."""

    dataset: str
    name: str
    image: NDArray
    labels: NDArray
    grid: Grid

    def objects(self) -> list[int]:
        """Label values with enough voxels."""
        counts = np.bincount(self.labels.ravel())
        return [int(v) for v in np.flatnonzero(counts) if v > 0 and counts[v] >= MIN_OBJECT_VOXELS]


def load_cases(folder: Path, split: str) -> list[LabelledCase]:
    """Every case of one split of a folder with a manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    cases = []
    for entry in manifest["cases"]:
        if entry["split"] != split:
            continue
        volume = load_volume(folder / entry["image"])
        labels = load_mask(folder / entry["label"], volume.grid)
        cases.append(LabelledCase(entry["dataset"], entry["case"], volume.array, labels, volume.grid))
    return cases


def _permuted(window: Window, draws: Draws) -> Window:
    """Random mirror and axis order: a model of shapes must not know left from right."""
    order = torch.randperm(3, generator=draws.generator).tolist()
    flips = [axis for axis in range(3) if draws.chance(0.5)]
    image, valid, target = (
        torch.flip(t.permute(order), flips).contiguous() for t in (window.image, window.valid, window.target)
    )
    return Window(image, valid, target)


class RealWindows:
    """Windows around the labelled objects of real cases.

    A dataset is drawn with a weight that grows with the square root of its number of objects, so that
    one large collection does not drown the others.
    """

    def __init__(self, cases: list[LabelledCase]) -> None:
        self.by_dataset: dict[str, list[tuple[LabelledCase, int]]] = defaultdict(list)
        self._boxes: dict[tuple[str, int], tuple[slice, ...]] = {}
        for case in cases:
            self.by_dataset[case.dataset] += [(case, value) for value in case.objects()]
        self.names = sorted(name for name, objects in self.by_dataset.items() if objects)
        weights = torch.tensor([min(8.0, len(self.by_dataset[name]) ** 0.5) for name in self.names])
        self.cumulative = torch.cumsum(weights / weights.sum(), 0)

    def draw(self, draws: Draws, n: int) -> Window:
        while True:
            index = int(torch.searchsorted(self.cumulative, draws.uniform(0, 0.9999)))
            objects = self.by_dataset[self.names[index]]
            case, value = objects[draws.integer(0, len(objects) - 1)]
            window = self._window(draws, n, case, value)
            if MIN_TARGET_VOXELS <= int(window.target.sum()) <= MOST_FILLED * n**3:
                return window

    def _window(self, draws: Draws, n: int, case: LabelledCase, value: int) -> Window:
        inside = case.labels == value
        spans = [
            np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)
        ]
        low, high = (np.array([s[end] for s in spans]) for end in (0, -1))
        extent = float(((high - low + 1) * case.grid.spacing).max())
        spacing = extent / (n * draws.log_uniform(0.06, 2.2))
        whole = float((np.array(case.grid.shape) * case.grid.spacing).max()) * 1.1 / n
        spacing = float(np.clip(spacing, 0.5 * case.grid.spacing.min(), min(8.0, whole)))
        if draws.chance(0.5):
            centre = (low + high) / 2
        else:
            box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
            voxels = np.argwhere(inside[box])
            centre = voxels[draws.integer(0, len(voxels) - 1)] + low
        jitter = draws.normal(3).numpy() * spacing * n * 0.12 / case.grid.spacing
        roi = Roi.centred(
            case.grid.ras.points_from_file(centre + jitter), (spacing,) * 3, (n, n, n), case.grid.ras
        )
        image, valid = read_roi(case.image, roi)
        target, _ = read_roi(inside, roi)
        if draws.chance(0.25):  # a person's window level, which the file may have been saved with
            known = image[valid]
            low_level, high_level = torch.quantile(
                known[:: max(1, known.numel() // 8192)], draws.rand(2).sort()[0]
            )
            if high_level > low_level and draws.chance(0.5):
                image = image.clamp(low_level, high_level)
        if draws.chance(0.5):
            image = degrade(draws, image)
        return _permuted(Window(image, valid, (target > 0.5) & valid), draws)


class PseudoWindows:
    """Windows of real cases around something that has an outline, whatever it is."""

    def __init__(self, cases: list[LabelledCase]) -> None:
        self.by_dataset: dict[str, list[LabelledCase]] = defaultdict(list)
        for case in cases:
            self.by_dataset[case.dataset].append(case)
        self.names = sorted(self.by_dataset)

    def draw(self, draws: Draws, n: int) -> Window:
        while True:
            cases = self.by_dataset[self.names[draws.integer(0, len(self.names) - 1)]]
            case = cases[draws.integer(0, len(cases) - 1)]
            whole = float((np.array(case.grid.shape) * case.grid.spacing).max()) * 1.1 / n
            finest = 0.75 * float(case.grid.spacing.min())
            spacing = min(draws.log_uniform(finest, max(finest, min(4.0, whole))), whole)
            centre = draws.rand(3).numpy() * (np.array(case.grid.shape) - 1)
            points = case.grid.ras.points_from_file(centre)
            image, valid = read_roi(case.image, Roi.centred(points, (spacing,) * 3, (n, n, n), case.grid.ras))
            target = pseudo_object(draws, image, valid)
            if target is None:
                continue
            if draws.chance(0.5):
                image = degrade(draws, image)
            return _permuted(Window(image, valid, target), draws)


class HeadWindows:
    """Windows of real head label maps painted with random intensities."""

    def __init__(self, files: list[Path]) -> None:
        self.maps: list[NDArray[np.uint8]] = []
        for file in files:
            labels = load_volume(file).array
            _, compact = np.unique(labels, return_inverse=True)
            self.maps.append(compact.reshape(labels.shape).astype(np.uint8))

    def draw(self, draws: Draws, n: int) -> Window:
        while True:
            labels = self.maps[draws.integer(0, len(self.maps) - 1)]
            step = draws.log_uniform(0.6, 3.5)
            shape = np.array(labels.shape)
            centre = (0.15 + 0.7 * draws.rand(3).numpy()) * shape
            lines = [centre[a] + step * (np.arange(n) - (n - 1) / 2) for a in range(3)]
            inside = [(line >= 0) & (line <= shape[a] - 1) for a, line in enumerate(lines)]
            index = [np.clip(np.round(line), 0, shape[a] - 1).astype(int) for a, line in enumerate(lines)]
            window = torch.from_numpy(labels[np.ix_(*index)]).long()
            valid = torch.from_numpy(
                inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
            )
            present = torch.bincount(window[valid])
            usable = torch.nonzero(present >= 2 * MIN_TARGET_VOXELS).flatten().tolist()
            usable = [v for v in usable if v != 0]
            if not usable:
                continue
            count = 1 if draws.chance(0.7) else min(len(usable), draws.integer(2, 4))
            chosen = [usable[draws.integer(0, len(usable) - 1)] for _ in range(count)]
            target = torch.isin(window, torch.tensor(chosen)) & valid
            if int(target.sum()) < MIN_TARGET_VOXELS or float(target.float().mean()) > MOST_FILLED:
                continue
            image = degrade(draws, paint(draws, window))
            return _permuted(Window(image, valid, target), draws)


class SyntheticWindows:
    """Windows of random anatomy."""

    def draw(self, draws: Draws, n: int) -> Window:
        while True:
            labels, target = random_anatomy(draws, n)
            if MIN_TARGET_VOXELS <= int(target.sum()) <= MOST_FILLED * n**3:
                image = degrade(draws, paint(draws, labels))
                return Window(image, torch.ones_like(target), target)


class Source(Protocol):
    """Draws windows of n voxels a side."""

    def draw(self, draws: Draws, n: int) -> Window: ...


class Mixture:
    """Windows from several sources in fixed shares.

    Args:
        folder: data with a manifest, or None for synthetic windows alone.
        shares: relative frequency of 'real', 'pseudo', 'heads' and 'synthetic'.
    """

    def __init__(self, folder: Path | None, shares: dict[str, float]) -> None:
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
            return HeadWindows(sorted((folder / "head_label_maps").glob("*.nii.gz")))
        self._cases = self._cases or load_cases(folder, "train")
        return RealWindows(self._cases) if name == "real" else PseudoWindows(self._cases)

    def draw(self, seed: int, n: int) -> Window:
        """The window of a seed: the same seed gives the same window."""
        draws = Draws(seed)
        at = draws.uniform(0, self.total)
        source = next((source for limit, source in self.sources if at <= limit), self.sources[-1][1])
        return source.draw(draws, n)
