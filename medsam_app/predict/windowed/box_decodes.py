"""Ways to decode a 3D box, whose probabilities are averaged.

The network was trained with few boxes, so that a box alone gives less than a click. It is better at redrawing
a rough outline, as in the tiles of a large object. So a box is also given as the outline of a rough mask: of
the ellipsoid in it, or of what a slice model finds in it. Which decodes are averaged was chosen on `train`
objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from medsam_app.models.sam3d import RoiPrompts
from medsam_app.predict.windowed.tiles import sure_of

#: Voxels over which the probability of the ellipsoid falls at its surface.
SOFT = 1.2
#: A probability closer to 0 and 1 than this has no finite logit in float32.
EDGE = 1e-6


def first_decodes(prompts: RoiPrompts, found: torch.Tensor | None, shape: Sequence[int]) -> list[RoiPrompts]:
    """Return the decodes of a box without clicks.

    Args:
        prompts: a box in a window.
        found: (X, Y, Z) probability that a slice model finds in the box, if there is one.
        shape: (X, Y, Z) voxels of the window.
    """
    assert prompts.boxes is not None
    in_box = as_outline(prompts, ellipsoid(prompts.boxes[0], shape))
    return [in_box, prompts if found is None else as_outline(prompts, found)]


def later_decodes(
    prompts: RoiPrompts, fresh: RoiPrompts, found: torch.Tensor | None, shape: Sequence[int]
) -> list[RoiPrompts]:
    """Return the decodes of a box with clicks.

    Args:
        prompts: all prompts in a window, with the previous mask.
        fresh: the same without the previous mask.
        found: (X, Y, Z) probability that a slice model finds in the box, if there is one.
        shape: (X, Y, Z) voxels of the window.
    """
    assert prompts.boxes is not None
    rough = ellipsoid(prompts.boxes[0], shape) if found is None else found
    return [replace(prompts, boxes=None), as_outline(fresh, rough)]


def as_outline(prompts: RoiPrompts, probability: torch.Tensor) -> RoiPrompts:
    """Return a rough mask as the outline to redraw, instead of the box.

    Args:
        prompts: prompts in a window.
        probability: (X, Y, Z) of the rough mask.
    """
    mask = (probability > 0.5).cpu().numpy()
    coords, labels = prompts.coords, prompts.labels
    if mask.any():
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
        deepest = np.unravel_index(int(depth.argmax()), depth.shape)
        click = torch.tensor(deepest, dtype=coords.dtype, device=coords.device)
        coords = torch.cat([click.view(1, 1, 3), coords], dim=1)
        labels = torch.cat([labels.new_ones(1, 1), labels], dim=1)
    seeds = torch.from_numpy(sure_of(mask)).to(coords.device)
    return replace(
        prompts,
        coords=coords,
        labels=labels,
        boxes=None,
        mask=probability[None, None].to(coords.device),
        seeds=seeds[None, None],
    )


def ellipsoid(box: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the probability (X, Y, Z) of the ellipsoid in a box.

    Args:
        box: (2, 3) lower and upper corner, both inside, in voxels of the window.
        shape: (X, Y, Z) voxels of the window.
    """
    low, high = box.float().cpu().unbind()
    middle, radii = (low + high) / 2, (high - low + 1).clamp_min(1) / 2
    square = torch.zeros(())
    for axis, n in enumerate(shape):
        view = [1, 1, 1]
        view[axis] = n
        line = (torch.arange(n, dtype=torch.float32) - middle[axis]) / radii[axis]
        square = square + line.square().view(view)
    return torch.sigmoid((1 - square.sqrt()) * radii.mean() / SOFT)


def mean_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits of the mean of probabilities, given by their logits; a single one unchanged."""
    if len(logits) == 1:
        return logits[0]
    return torch.logit(torch.stack([torch.sigmoid(one) for one in logits]).mean(0).clamp(EDGE, 1 - EDGE))
