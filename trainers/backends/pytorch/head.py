"""The output head: from hidden states to log-probabilities, some rows at a time.

Logits of all response tokens of a pass would be [a, V]: 2.5 GB for 4,096 tokens and a vocabulary of 151,936, and
as much again for each thing derived from them. So rows go through the head in chunks, and where gradients are wanted
each chunk goes backward before the next goes forward:

    states [a, H] ──► chunk [c, H] ──► logits [c, V] ──► log-probabilities [c] ──► loss
                          ▲               │                                         │
                      gradient ◄──────────┴─► added to the head's ◄── backward ─────┘

Legend: a response tokens of a pass, c of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlserve.trainers.backends.base import PolicyOutputs

_CHUNK_ELEMENTS = 2**22
"""Logits that are computed together whatever the hidden size: 16 MiB."""
_CHUNK_ROWS = 1024
"""Rows beyond which a larger chunk makes the head's products no quicker."""

Autocast = Callable[[], AbstractContextManager[Any]]
"""Makes the context that forward passes run in."""


@dataclass(frozen=True, kw_only=True)
class ExactLogProbs:
    """Log-probabilities computed elsewhere, each [a] float32, to be taken in place of the head's own."""

    log_probs: Tensor
    raw_log_probs: Tensor


Loss = Callable[[slice, PolicyOutputs], Tensor]
"""What some rows, and what the policy says about them, add to the loss: a scalar."""


class OutputHead:
    """A policy's output head, for one temperature."""

    def __init__(self, policy: Any, temperature: float) -> None:
        self._head = policy.get_output_embeddings()
        self._cap = getattr(policy.config, "final_logit_softcapping", None)
        self._temperature = temperature

    def chunks(self, num_rows: int) -> Iterator[slice]:
        """The rows in order, cut so that the logits of a part take no more memory than the head's own weights, or
        than 16 MiB. Depends on the number of rows and the model alone."""
        vocab_size, hidden_size = self._head.weight.shape
        length = max(1, _CHUNK_ELEMENTS // vocab_size, min(hidden_size, _CHUNK_ROWS))
        return (slice(first, min(first + length, num_rows)) for first in range(0, num_rows, length))

    def outputs(self, states_aH: Tensor, targets_a: Tensor, *, with_entropy: bool = False) -> PolicyOutputs:
        """For where no gradient is wanted; each [a]."""
        found = _empty_outputs(targets_a, with_entropy=with_entropy)
        with torch.no_grad():
            for rows in self.chunks(len(targets_a)):
                _fill(found, rows, self._outputs(states_aH[rows], targets_a[rows], with_entropy=with_entropy))
        return found

    def backward(
        self,
        states_aH: Tensor,
        targets_a: Tensor,
        loss: Loss,
        *,
        with_entropy: bool,
        autocast: Autocast,
        exact: ExactLogProbs | None = None,
        at_once: bool = False,
        gradient_aH: Tensor | None = None,
    ) -> PolicyOutputs:
        """Add the gradient of ``loss`` over all rows to the head's weights, and send the states' on to the network
        below. Returns what the policy says about all rows [a], without gradient.

        Args:
            at_once: ask ``loss`` for all rows together. Where they are more than a chunk, they go through the head once
                more for that.
            exact: the same log-probabilities, added up in another order. They become the values; the gradient is
                that of the head's own.
            gradient_aH: what another head adds to the states' gradient.
        """
        if at_once and len(list(self.chunks(len(targets_a)))) > 1:
            loss = self._by_rows(states_aH, targets_a, loss, with_entropy=with_entropy, autocast=autocast, exact=exact)
        total_aH = torch.empty_like(states_aH)
        # Filled in place: a small tensor kept from each chunk would keep the allocator from using its memory again.
        found = _empty_outputs(targets_a, with_entropy=with_entropy)
        for rows in self.chunks(len(targets_a)):
            chunk_cH = states_aH[rows].detach().requires_grad_()
            with autocast():
                outputs = self._outputs(chunk_cH, targets_a[rows], with_entropy=with_entropy)
            if exact is not None:
                outputs = _with_values(outputs, exact, rows)
            loss(rows, outputs).backward()  # type: ignore[no-untyped-call]
            assert chunk_cH.grad is not None
            total_aH[rows] = chunk_cH.grad
            _fill(found, rows, outputs)
            del chunk_cH, outputs
        if gradient_aH is not None:
            total_aH += gradient_aH
        states_aH.backward(total_aH)  # type: ignore[no-untyped-call]
        return found

    def _by_rows(
        self,
        states_aH: Tensor,
        targets_a: Tensor,
        loss: Loss,
        *,
        with_entropy: bool,
        autocast: Autocast,
        exact: ExactLogProbs | None,
    ) -> Loss:
        """A loss of some rows at a time that has the gradient of one of all rows together."""
        found = _empty_outputs(targets_a, with_entropy=with_entropy)
        for rows in self.chunks(len(targets_a)):
            with torch.no_grad(), autocast():
                outputs = self._outputs(states_aH[rows], targets_a[rows], with_entropy=with_entropy)
            _fill(found, rows, outputs if exact is None else _with_values(outputs, exact, rows))
        log_probs, entropies = found.log_probs.requires_grad_(), found.entropies
        if entropies is not None:
            entropies.requires_grad_()
        loss(slice(None), found).backward()  # type: ignore[no-untyped-call]

        def weighted(rows: slice, outputs: PolicyOutputs) -> Tensor:
            assert log_probs.grad is not None
            total = (log_probs.grad[rows] * outputs.log_probs).sum()
            if entropies is not None and entropies.grad is not None and outputs.entropies is not None:
                total = total + (entropies.grad[rows] * outputs.entropies).sum()
            return total

        return weighted

    def _outputs(self, states_cH: Tensor, targets_c: Tensor, *, with_entropy: bool = False) -> PolicyOutputs:
        raw_logits_cV = self._head(states_cH)
        if self._cap is not None:
            raw_logits_cV = torch.tanh(raw_logits_cV / self._cap) * self._cap
        raw_logits_cV = raw_logits_cV.float()
        if self._temperature == 1.0:
            log_probs, entropies = _Reduced.apply(raw_logits_cV, targets_c, with_entropy)  # type: ignore[no-untyped-call]
            raw_log_probs = log_probs.detach()
        else:
            with torch.no_grad():
                raw_log_probs, _ = _reduced(raw_logits_cV, targets_c)
            logits_cV = raw_logits_cV / self._temperature
            log_probs, entropies = _Reduced.apply(logits_cV, targets_c, with_entropy)  # type: ignore[no-untyped-call]
        return PolicyOutputs(log_probs=log_probs, raw_log_probs=raw_log_probs, entropies=entropies)


def _empty_outputs(targets_a: Tensor, *, with_entropy: bool) -> PolicyOutputs:
    log_probs, raw_log_probs, entropies = (torch.empty_like(targets_a, dtype=torch.float32) for _ in range(3))
    return PolicyOutputs(
        log_probs=log_probs, raw_log_probs=raw_log_probs, entropies=entropies if with_entropy else None
    )


def _fill(found: PolicyOutputs, rows: slice, outputs: PolicyOutputs) -> None:
    found.log_probs[rows] = outputs.log_probs.detach()
    found.raw_log_probs[rows] = outputs.raw_log_probs
    if found.entropies is not None and outputs.entropies is not None:
        found.entropies[rows] = outputs.entropies.detach()


def _with_values(outputs: PolicyOutputs, exact: ExactLogProbs, rows: slice) -> PolicyOutputs:
    log_probs = _WithValues.apply(outputs.log_probs, exact.log_probs[rows])  # type: ignore[no-untyped-call]
    return PolicyOutputs(log_probs=log_probs, raw_log_probs=exact.raw_log_probs[rows], entropies=outputs.entropies)


def _reduced(logits_cV: Tensor, targets_c: Tensor) -> tuple[Tensor, Tensor]:
    """[c] log-probabilities of the targets, and [c, V] those of all tokens."""
    log_distribution_cV = logits_cV.log_softmax(dim=-1)
    return log_distribution_cV.gather(-1, targets_c[:, None]).squeeze(-1), log_distribution_cV


class _Reduced(torch.autograd.Function):
    """Log-probabilities of the targets and, where asked for, entropies. Goes backward in the memory that it saved: to
    autograd, each operation by itself would cost a tensor [c, V] more."""

    @staticmethod
    def forward(context: Any, logits_cV: Tensor, targets_c: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        log_probs, log_distribution_cV = _reduced(logits_cV, targets_c)
        entropies = None
        if with_entropy:
            entropies = -torch.linalg.vecdot(log_distribution_cV.exp(), log_distribution_cV)
        context.saved = log_distribution_cV, targets_c, entropies
        return log_probs, entropies

    @staticmethod
    def backward(context: Any, gradient_c: Tensor, entropy_gradient_c: Tensor | None) -> tuple[Tensor, None, None]:
        """With p = softmax(x): d log p_t / d x_i = [i = t] - p_i, and d entropy / d x_i = -p_i (log p_i + entropy)."""
        log_distribution_cV, targets_c, entropies = context.saved
        del context.saved
        if entropies is None or entropy_gradient_c is None:
            gradient_cV = log_distribution_cV.exp_().mul_(-gradient_c[:, None])
        else:
            distribution_cV = log_distribution_cV.exp()
            shift_c = gradient_c + entropy_gradient_c * entropies
            gradient_cV = log_distribution_cV.mul_(-entropy_gradient_c[:, None]).sub_(shift_c[:, None])
            gradient_cV.mul_(distribution_cV)
        return gradient_cV.scatter_add_(-1, targets_c[:, None], gradient_c[:, None]), None, None


class _WithValues(torch.autograd.Function):
    """Other values for a tensor: the same function of the same parameters, added up in another order. The gradient
    goes to the tensor as it is."""

    @staticmethod
    def forward(_context: Any, _computed: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
