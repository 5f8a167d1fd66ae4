from __future__ import annotations

import pytest
import torch

from rlserve.tasks.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 32, 32), (2, 16, 64), (2, 64, 16), (1, 1, 5)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalised(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    # Those that begin far below the largest are still on their way up.
    assert values.max() < 1.3
    assert values.median() > 0.6
    assert ((result * matrices).sum(dim=(1, 2)) > 0).all()


def test_steps_are_those_of_pytorch_but_for_its_rounding() -> None:
    torch.manual_seed(0)
    start = [torch.randn(16, 16), torch.randn(32, 16), torch.randn(16, 32), torch.randn(16, 16)]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.02 * (one - before).norm()
