"""Learned prompts: vectors added to the mask tokens, one per label.

The decoder lets its mask tokens attend to the window, and then multiplies each with the features of every
voxel. A learned prompt is added to these tokens before and after the attention, so that each label has its
own attention and its own weighting of the features. Additional tokens, like those of clicks, had no effect in
any of the experiments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsam_app.errors import AdapterError, unknown_name
from medsam_app.models.decoder import MaskDecoder

#: Standard deviation of untrained prompts: training needs prompts that weight the features differently.
SPREAD = 0.5


class LearnedPrompts(nn.Module):
    """One set of tokens for each label.

    Args:
        model: model with a mask decoder that takes learned prompts.
        labels: distinct label values above 0.

    Raises:
        AdapterError: The model takes no learned prompts, or the labels are not distinct numbers above 0.
    """

    def __init__(self, model: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        self.labels = tuple(int(value) for value in labels)
        if len(set(self.labels)) < len(self.labels) or any(value < 1 for value in self.labels):
            raise AdapterError(f"Labels are distinct whole numbers above 0; got {list(self.labels)}.")
        if self.labels:
            decoder = next((module for module in model.modules() if isinstance(module, MaskDecoder)), None)
            if decoder is None:
                name = getattr(model, "model_id", "") or type(model).__name__
                raise AdapterError(
                    f"The model '{name}' takes clicks and boxes, but no learned prompts for labels; make the "
                    "adapter without labels, or take sam3d_tiny or a sam3d_vit model."
                )
            self.tokens = nn.Parameter(SPREAD * torch.randn(len(self.labels), *decoder.mask_tokens.shape))

    def of(self, label: int) -> Tensor:
        """Return the tokens of a label, (1, T, C).

        Raises:
            AdapterError: There is no learned prompt for that label.
        """
        if label not in self.labels:
            if not self.labels:
                raise AdapterError(
                    f"Label {label} was asked for, but the adapter knows no labels; click on the object."
                )
            raise AdapterError(unknown_name("label", str(label), [str(value) for value in self.labels]))
        return self.tokens[self.labels.index(label)][None]
