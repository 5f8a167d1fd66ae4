"""Passes of a mini-batch, gone backward: each adds a gradient, and says what the networks said about its tokens.

Legend: a response tokens of a pass, C columns, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.base import CRITIC, POLICY, Losses
from rlserve.trainers.backends.pytorch.kept_passes import KeptPasses
from rlserve.trainers.backends.pytorch.models import PolicyLoss, policy_backward, response_states, response_values
from rlserve.trainers.backends.pytorch.native_policy import NativePolicy
from rlserve.trainers.backends.pytorch.runner import ShardRunner
from rlserve.trainers.backends.pytorch.shards import LogicalShard, PassInputs
from rlserve.trainers.backends.pytorch.shared_trunk import values_backward


class TrainedNetworks(Protocol):
    """As ``models`` takes them."""

    policy: Any
    valuer: Any
    """Whoever says values."""


class BackwardPasses:
    """Of one mini-batch."""

    def __init__(
        self,
        networks: TrainedNetworks,
        runner: ShardRunner,
        losses: Losses,
        *,
        temperature: float,
        inputs: Callable[[LogicalShard], PassInputs],
        native: NativePolicy | None = None,
        kept: KeptPasses | None = None,
    ) -> None:
        """``inputs`` of a pass; ``native`` is the policy as the engine computes it."""
        self._networks = networks
        self._runner = runner
        self._losses = losses
        self._temperature = temperature
        self._inputs = inputs
        self._native = native
        self._kept = KeptPasses() if kept is None else kept

    def of(self, networks: Sequence[str]) -> Callable[[LogicalShard], Tensor]:
        """Goes backward over one pass of networks that are trained together; [a, C]: of a policy log-probabilities, raw
        ones and, where they were asked for, entropies; then the values of what says any."""
        if len(networks) > 1:
            return self._joint
        says_values = networks[0] == CRITIC or self._networks.valuer is self._networks.policy
        return self._values if says_values else self._policy

    def in_parts(self, networks: Sequence[str]) -> list[nn.Parameter]:
        """The parameters of these networks that one pass reaches more than once."""
        policy = self._networks.policy
        if POLICY not in networks or self._networks.valuer is policy:
            return []
        return list(policy.get_output_embeddings().parameters())

    def _policy(self, part: LogicalShard, states_aH: Tensor | None = None, gradient_aH: Tensor | None = None) -> Tensor:
        tokens = self._tokens(part)
        loss = PolicyLoss(
            of_rows=lambda rows, outputs: self._losses.policy(tokens[rows], outputs),
            with_entropy=self._losses.with_entropies,
            at_once=self._losses.of_whole_samples,
        )
        outputs = policy_backward(
            self._networks.policy,
            self._inputs(part),
            loss,
            temperature=self._temperature,
            autocast=self._runner.autocast,
            native=self._native,
            states_aH=states_aH,
            gradient_aH=gradient_aH,
        )
        columns = [outputs.log_probs, outputs.raw_log_probs]
        if outputs.entropies is not None:
            columns.append(outputs.entropies)
        return torch.stack(columns, dim=1)

    def _values(self, part: LogicalShard) -> Tensor:
        assert self._losses.value is not None
        values = self._kept.take(part)
        if values is None:
            with self._runner.autocast():
                values = response_values(self._networks.valuer, self._inputs(part))
        self._losses.value(self._tokens(part), values).backward()  # type: ignore[no-untyped-call]
        return values.detach()[:, None]

    def _joint(self, part: LogicalShard) -> Tensor:
        value_loss, tokens, valuer = self._losses.value, self._tokens(part), self._networks.valuer
        assert value_loss is not None
        states_aH = self._kept.take(part)
        if states_aH is None:
            with self._runner.autocast():
                states_aH = response_states(valuer.backbone, self._inputs(part))
        values_a, gradient_aH = values_backward(
            valuer.value_head, states_aH, lambda values: value_loss(tokens, values), autocast=self._runner.autocast
        )
        return torch.cat([self._policy(part, states_aH, gradient_aH), values_a[:, None]], dim=1)

    def _tokens(self, part: LogicalShard) -> Tensor:
        return torch.from_numpy(part.tokens).to(self._runner.device)
