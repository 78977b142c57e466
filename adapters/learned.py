"""Learned prompts: tokens that stand for a label, so that it can be asked for without a click."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsam_app.errors import AdapterError, unknown_name
from medsam_app.models.prompt_encoder import PromptEncoder

#: Tokens of a label: the decoder's attention sees as many clicks.
TOKENS = 4
#: Spread of fresh tokens, which is about that of the kinds of prompts.
SPREAD = 0.5


class LearnedPrompts(nn.Module):
    """One set of tokens for each label.

    Args:
        model: its prompt encoder takes learned tokens.
        labels: values that the labels have in label maps, each once, above 0.

    Raises:
        AdapterError: labels for a model that takes no learned tokens, or not distinct ones above 0.
    """

    def __init__(self, model: nn.Module, labels: Sequence[int]) -> None:
        super().__init__()
        self.labels = tuple(int(value) for value in labels)
        if len(set(self.labels)) < len(self.labels) or any(value < 1 for value in self.labels):
            raise AdapterError(f"Labels are distinct whole numbers above 0; got {list(self.labels)}.")
        if self.labels:
            encoder = next((m for m in model.modules() if isinstance(m, PromptEncoder)), None)
            if encoder is None:
                name = getattr(model, "model_id", "") or type(model).__name__
                raise AdapterError(
                    f"The model '{name}' takes clicks and boxes, but no learned prompts for labels; make the "
                    "adapter without labels, or take sam3d_tiny or a sam3d_vit model."
                )
            shape = (len(self.labels), TOKENS, encoder.kinds.embedding_dim)
            self.tokens = nn.Parameter(SPREAD * torch.randn(shape))

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
