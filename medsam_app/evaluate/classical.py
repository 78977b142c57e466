"""Segmentation methods without learning, with the interface of `VolumePredictor`, as baselines.

`walker` and `confidence` work in the window that the product opens for a first click: 64 voxels a side at 1.5
mm, or finer if a small volume fits into it completely. The window grows to hold clicks that are further
apart. Both methods read the model's two views of the intensities in the window, and their masks are resampled
to the file's grid in the same way as the model's. Their masks are not corrected where they do not honour
clicks.

As in the product, voxels further outside a box than a tenth of its size never belong to the object. Without a
positive click, the centre of the box serves as one.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medsam_app.errors import PromptError
from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.patch import box_slices
from medsam_app.grid.roi import Roi, mask_from_logits, read_roi
from medsam_app.io.volume import Volume
from medsam_app.models.encoder import normalise
from medsam_app.models.load import choose_device, prepare
from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.predict.core.constraints import BOX_TOLERANCE
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.windowed.window_choice import Framing, first_roi
from medsam_app.prompts.types import Box, Point, check_prompts, prompts_from_arrays


@dataclass(frozen=True, eq=False)
class ClassicalPrediction:
    """A mask, (i, j, k) on the volume's grid; these methods do not estimate a Dice."""

    mask: NDArray[np.bool_]
    score: None = None


@dataclass(frozen=True, eq=False)
class View:
    """Input of a method: the window and the prompts in it.

    Attributes:
        image: (2, X, Y, Z) float32 in [-1, 1], see `normalise`.
        allowed: (X, Y, Z) bool, inside the volume and inside the box if there is one.
        valid: (X, Y, Z) bool, inside the volume.
        clicks: (N, 3) voxels of the window nearest to the clicks.
        positive: (N,) bool.
    """

    image: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    clicks: NDArray[np.int64]
    positive: NDArray[np.bool_]


class Classical(ABC):
    """Baseline on windows of one volume at a time; a mask depends only on volume and prompts."""

    #: Voxels of the window along each axis.
    SIDE = 64

    def __init__(self) -> None:
        self._volume: Volume | None = None

    @property
    def volume(self) -> Volume:
        """The volume to segment.

        Raises:
            PromptError: no volume is set.
        """
        if self._volume is None:
            raise PromptError("No volume is set; call set_volume with a volume before predicting.")
        return self._volume

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""
        self._volume = volume

    def predict(
        self,
        *,
        points: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
    ) -> ClassicalPrediction:
        """Segment from points and at most one box; arguments as in `VolumePredictor.predict`.

        Raises:
            PromptError: prompts outside the volume, several boxes, or neither a positive click nor a box.
        """
        grid = self.volume.grid
        prompts = prompts_from_arrays(points, point_labels, boxes, None)
        check_prompts(prompts, grid)
        clicks = [prompt for prompt in prompts if isinstance(prompt, Point)]
        user_boxes = [prompt for prompt in prompts if isinstance(prompt, Box)]
        if len(user_boxes) > 1:
            raise PromptError(f"A baseline takes one box; got {len(user_boxes)}.")
        if not any(click.positive for click in clicks):
            if not user_boxes:
                raise PromptError("Nothing says where the object is; give a positive click or a box.")
            middle = (np.array(user_boxes[0].lower) + user_boxes[0].upper) / 2
            clicks.insert(0, Point(coordinates=tuple(middle.tolist())))
        # `first_roi` holds only positive points, and the window must hold negative clicks as well.
        window_points = [Point(coordinates=click.coordinates) for click in clicks]
        roi = first_roi([*user_boxes, *window_points], grid, (self.SIDE,) * 3, Framing())
        probability = self._inside(_view(self.volume, roi, clicks, user_boxes))
        patch = mask_from_logits(torch.from_numpy(probability - np.float32(0.5)), roi)
        return ClassicalPrediction(patch.to_array(grid.shape))

    @abstractmethod
    def _inside(self, view: View) -> NDArray[np.float32]:
        """Return (X, Y, Z) values, above 0.5 inside the object."""


def _view(volume: Volume, roi: Roi, clicks: list[Point], user_boxes: list[Box]) -> View:
    image, valid = read_roi(volume.array, roi)
    views = normalise(image[None, None], valid[None, None])[0]
    size = np.array(roi.shape)
    voxels = np.round(roi.to_roi([click.coordinates for click in clicks]))
    allowed = valid.numpy().copy()
    for box in user_boxes:
        slack = BOX_TOLERANCE * np.subtract(box.upper, box.lower)
        corners = roi.to_roi([box.lower - slack, box.upper + slack])
        reach = 0.5 / roi.step  # a box includes its last voxels completely
        low = np.clip(np.ceil(corners.min(axis=0) - reach), 0, size - 1).astype(int)
        high = np.clip(np.floor(corners.max(axis=0) + reach), low, size - 1).astype(int)
        within = np.zeros_like(allowed)
        within[box_slices(low, high + 1)] = True
        allowed &= within
    return View(
        image=views.numpy(),
        allowed=allowed,
        valid=valid.numpy(),
        clicks=np.clip(voxels, 0, size - 1).astype(np.int64),
        positive=np.array([click.positive for click in clicks]),
    )


class RandomWalker(Classical):
    """Scikit-image's random walker (Grady, IEEE TPAMI 2006).

    The seeds are a ball of radius two voxels around the first click and of radius one around the others. The
    outermost voxels of the window, voxels outside the volume and voxels that a box excludes are background.
    """

    BETA = 3000.0
    TOLERANCE = 1e-3

    def __init__(self) -> None:
        super().__init__()
        from skimage.segmentation import random_walker

        self._walk = random_walker

    def _inside(self, view: View) -> NDArray[np.float32]:
        seeds = np.zeros(view.valid.shape, dtype=np.int8)
        # If the window extends beyond the volume, its outermost voxels are those of the volume.
        seeds[view.valid & ~ndimage.binary_erosion(view.valid)] = 2
        seeds[~view.allowed] = 2
        labels = np.where(view.positive, 1, 2)
        for number, (click, label) in enumerate(zip(view.clicks, labels, strict=True)):
            seeds[_ball(view.valid.shape, click, 2 if number == 0 else 1)] = label
        seeds[tuple(view.clicks.T)] = labels
        seeds[~view.valid] = -1
        inside = seeds == 1
        free = seeds == 0
        if free.any():
            with warnings.catch_warnings():  # about solvers that are not installed
                warnings.simplefilter("ignore")
                probabilities = self._walk(
                    np.moveaxis(view.image, 0, -1),
                    seeds,
                    beta=self.BETA,
                    mode="cg_j",
                    tol=self.TOLERANCE,
                    return_full_prob=True,
                    channel_axis=-1,
                )
            return np.where(free, probabilities[0], inside).astype(np.float32)
        return inside.astype(np.float32)


class ConfidenceConnected(Classical):
    """SimpleITK's region growing by the statistics of a region.

    Each positive click grows a separate region. The mask is the region of the first click, plus those voxels
    of each later region that are closer to its click than to any other click: a click in a narrow structure
    has wide statistics and floods the window. The mask is then closed by one voxel and its holes are filled.
    Each negative click removes voxels that are closer to it than to any positive click: the connected
    component that contains the click.
    """

    MULTIPLIER = 2.5
    ITERATIONS = 1
    RADIUS = 1
    #: Standard deviation, in voxels, of the Gaussian before growing.
    SMOOTHING = 0.7

    def _inside(self, view: View) -> NDArray[np.float32]:
        image = sitk.GetImageFromArray(ndimage.gaussian_filter(view.image[0], self.SMOOTHING))
        positive, negative = view.clicks[view.positive], view.clicks[~view.positive]
        nearest = _distance(view.valid.shape, view.clicks)
        mask = np.zeros(view.valid.shape, dtype=bool)
        for number, click in enumerate(positive):
            region = self._grown(image, click)
            mask |= region if number == 0 else region & (_distance(mask.shape, click[None]) <= nearest)
        mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask & view.allowed)) & view.allowed
        nearest = _distance(mask.shape, positive)
        for click in negative:
            parts, _ = ndimage.label(
                mask & (_distance(mask.shape, click[None]) < nearest), structure=FULL_NEIGHBOURHOOD
            )
            if parts[tuple(click)]:
                mask &= parts != parts[tuple(click)]
        return mask.astype(np.float32)

    def _grown(self, image: sitk.Image, click: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the region of one click, (X, Y, Z) bool."""
        grown = sitk.ConfidenceConnected(
            image,
            seedList=[click[::-1].tolist()],  # SimpleITK's indices have the reverse axis order
            numberOfIterations=self.ITERATIONS,
            multiplier=self.MULTIPLIER,
            initialNeighborhoodRadius=self.RADIUS,
        )
        return sitk.GetArrayFromImage(grown) > 0


def _ball(shape: tuple[int, ...], centre: NDArray[np.int64], radius: int) -> NDArray[np.bool_]:
    """Return the voxels within a radius of a voxel, (X, Y, Z) bool."""
    return _distance(shape, centre[None]) <= radius**2


def _distance(shape: tuple[int, ...], voxels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the squared distance in voxels to the nearest of (N, 3) voxels, (X, Y, Z)."""
    nearest = np.full(shape, math.inf)
    for voxel in voxels:
        i, j, k = (np.square(np.arange(n) - position) for n, position in zip(shape, voxel, strict=True))
        np.minimum(nearest, i[:, None, None] + j[None, :, None] + k[None, None, :], out=nearest)
    return nearest


def untrained(*, device: str = "auto", refine: bool = False, seed: int = 0) -> VolumePredictor:
    """Return the embedded model with fresh weights: the prior of its untrained decoder and random walker.

    Args:
        device: device of the model.
        refine: as for `VolumePredictor`.
        seed: seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_sam3d_tiny()
    prepare(model, name="untrained sam3d_tiny", sha256="", device=choose_device(device)[0])
    return VolumePredictor(model, refine=refine)


#: Baselines by name; None is the untrained model.
BASELINES: dict[str, Callable[[], Classical] | None] = {
    "walker": RandomWalker,
    "confidence": ConfidenceConnected,
    "prior": None,
}


def baseline(name: str, *, device: str, refine: bool, seed: int) -> Classical | VolumePredictor:
    """Return a method by its name in `BASELINES`; only 'prior' uses device, refine and seed.

    Raises:
        SettingsError: a required package is not installed.
    """
    method = BASELINES[name]
    return untrained(device=device, refine=refine, seed=seed) if method is None else method()
