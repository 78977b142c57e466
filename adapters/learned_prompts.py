"""Learned prompts: vectors added to the mask tokens, one per label.

The decoder multiplies each of its mask tokens, once they have looked at the window, with features of every
voxel. A learned prompt is added to these tokens before and after, so that a label looks at the window and
reads its features in a way of its own. Tokens next to those of the clicks were ignored in all trials.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsam_app.errors import AdapterError, unknown_name
from medsam_app.models.decoder import MaskDecoder

#: Spread of fresh ones: labels must read different features before any can be learned.
SPREAD = 0.5


class LearnedPrompts(nn.Module):
    """One set of tokens for each label.

    Args:
        model: its mask decoder takes learned prompts.
        labels: values that the labels have in label maps, each once, above 0.

    Raises:
        AdapterError: labels for a model that takes no learned prompts, or not distinct ones above 0.
    """

    def __init__(self, model: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        self.labels = tuple(int(value) for value in labels)
        if len(set(self.labels)) < len(self.labels) or any(value < 1 for value in self.labels):
            raise AdapterError(f"Labels are distinct whole numbers above 0; got {list(self.labels)}.")
        if self.labels:
            decoder = next((m for m in model.modules() if isinstance(m, MaskDecoder)), None)
            if decoder is None:
                name = getattr(model, "model_id", "") or type(model).__name__
                raise AdapterError(
                    f"The model '{name}' takes clicks and boxes, but no learned prompts for labels; make the "
                    "adapter without labels, or take sam3d_tiny or a sam3d_vit model."
                )
            self.tokens = nn.Parameter(SPREAD * torch.randn(len(self.labels), *decoder.mask_tokens.shape))

    def of(self, label: int) -> Tensor:
        """(1, T, C) tokens of a label.

        Raises:
            AdapterError: no label of that value.
        """
        if label not in self.labels:
            if not self.labels:
                raise AdapterError(
                    f"Label {label} was asked for, but the adapter knows no labels; click on the object."
                )
            raise AdapterError(unknown_name("label", str(label), [str(value) for value in self.labels]))
        return self.tokens[self.labels.index(label)][None]
