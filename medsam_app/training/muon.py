"""Muon in float32: gradient descent with orthogonalised steps.

After Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Steps are scaled as in
Liu et al., arXiv:2502.16982, so that learning rates of AdamW carry over. `torch.optim.Muon` accepts only
matrices and computes in bfloat16, which is a hundred times slower on a processor without instructions for it.
Here the kernel of a convolution is a matrix with one row per output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Coefficients of the Newton-Schulz polynomial (Jordan et al.) and number of iterations.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix (m, n) with about the same singular vectors, and singular values near one."""
    a, b, c = POLYNOMIAL
    x = matrix / matrix.norm().clamp_min(1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable kernels of a model's linear layers and convolutions.

    Embeddings, depth-wise kernels and kernels with fewer than eight outputs or inputs are excluded.
    """
    kernels = []
    for module in model.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv3d) and module.groups == 1):
            kernel = cast(nn.Parameter, module.weight)
            if kernel.requires_grad and min(kernel.shape[0], kernel[0].numel()) >= 8:
                kernels.append(kernel)
    return kernels


class Muon(torch.optim.Optimizer):
    """Optimizer with orthogonalised Nesterov momentum.

    Args:
        parameters: parameters of two dimensions or more, the first of which are the outputs.
        lr: learning rate, on the scale of AdamW's.
        weight_decay: decoupled weight decay, multiplied by the learning rate.
        momentum: decay of the running average of gradients.
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
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                lookahead = parameter.grad.lerp(average, group["momentum"])
                step = orthogonalised(lookahead.flatten(1)).view_as(parameter)
                scale = 0.2 * max(step.shape[0], step[0].numel()) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * scale)
