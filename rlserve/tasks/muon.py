"""Muon in float32. PyTorch's computes in bfloat16, which processors without it emulate at many times the cost."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton–Schulz iteration: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024)."""
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95
_SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices [m, n] are made nearly orthogonal before they are applied, those of one shape at once."""

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = orthogonalised(torch.stack([self._with_momentum(matrix) for matrix in matrices]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.add_(update, alpha=-group["lr"] * scale)

    def _with_momentum(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        """Nesterov's."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum: torch.Tensor = state["momentum"].lerp_(matrix.grad, 1 - _MOMENTUM)
        update: torch.Tensor = matrix.grad.lerp(momentum, _MOMENTUM)
        return update


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """[k, m, n] → the same with singular values near 1 (0.7 to 1.2)."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x: torch.Tensor = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT
