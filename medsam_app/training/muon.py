"""Muon in float32: gradient descent whose steps have been made orthogonal.

After Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of
steps of Liu et al., arXiv:2502.16982, so that learning rates of AdamW carry over. `torch.optim.Muon` takes
matrices alone and works in bfloat16, which a processor without instructions for it does a hundred times
more slowly; here a convolution's kernel is the matrix of its output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Coefficients of the Newton-Schulz polynomial (Jordan et al.) and how often it is applied.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with about the same singular vectors, and singular values near one."""
    a, b, c = POLYNOMIAL
    x = matrix / matrix.norm().clamp_min(1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Kernels of a model's linear layers and convolutions that are to be trained.

    Embeddings and depth-wise kernels are none, nor are those with fewer than eight outputs or inputs.
    """
    found = []
    for module in model.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv3d) and module.groups == 1):
            kernel = cast(nn.Parameter, module.weight)
            if kernel.requires_grad and min(kernel.shape[0], kernel[0].numel()) >= 8:
                found.append(kernel)
    return found


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal.

    Args:
        parameters: of two dimensions or more; the first is the outputs.
        lr: learning rate, as of AdamW.
        weight_decay: decoupled, times the learning rate.
        momentum: decay of the average of gradients; the step looks ahead as Nesterov's does.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(average, group["momentum"])
                step = orthogonalised(ahead.flatten(1)).view_as(parameter)
                scale = 0.2 * max(step.shape[0], step[0].numel()) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * scale)
