"""One PPO step on one batch, as one rank sees it. Changes the state, which remembers how it was before.

The same on every rank; only the parts between bars differ by rank:

    batch ──► cut into logical shards ──► | values, old and reference   | ──► all-gather
                                          | log-probs of own shards     |         │
                                                                                  ▼
      ┌── for each epoch, mini-batch ◄── advantages, returns of all tokens ◄── rewards - KL
      │
      └─► | gradient of own shards | ──► sum in the fixed tree ──► norms ──► finite? ──► clip ──► AdamW
                                                                               │ no
                                                                               ▼
                                                                      NonFiniteLossError

What a logical shard computes depends on the shard alone, and what is added up is added in an order that depends
on the shards alone. So the result does not depend, to the bit, on which rank computed what, as long as all ranks
compute a shard alike: the same kind of processor, and on CPU the same number of threads.

Legend: A response tokens of the batch, a of a pass, a shard or a mini-batch, N elements of the flat parameter vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.errors import NonFiniteLossError
from rlserve.trainers import metrics
from rlserve.trainers.algorithms.ppo import policy_terms, value_term
from rlserve.trainers.backends.pytorch.head import HeadOutputs
from rlserve.trainers.backends.pytorch.models import policy_backward, policy_log_probs, response_values
from rlserve.trainers.backends.pytorch.native_policy import NativePolicy
from rlserve.trainers.backends.pytorch.runner import ShardRunner, tokens_of
from rlserve.trainers.backends.pytorch.shards import LogicalShard, ShardInputs, mini_batches
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.batch import Batch
from rlserve.trainers.config import AlgorithmConfig
from rlserve.trainers.elastic.reduction import sum_over_leaves
from rlserve.trainers.experience import Experience, Scores, make_experience


class _TokenRows(NamedTuple):
    """What the forward passes of an update gave; each [a]."""

    log_probs: Tensor
    raw_log_probs: Tensor
    values: Tensor
    entropies: Tensor | None = None
    """None where the loss does not need them."""


class PPOStep:
    """The step's algorithm; one object serves one batch."""

    def __init__(
        self,
        algorithm: AlgorithmConfig,
        state: TrainingState,
        runner: ShardRunner,
        *,
        batch: Batch,
        seed: int,
        temperature: float,
    ) -> None:
        self._algorithm = algorithm
        self._state = state
        self._runner = runner
        self._batch = batch
        self._seed = seed
        self._temperature = temperature

    def run(self) -> dict[str, float]:
        """Update the state; return the metrics. The state remembers how it was before the first update, and no sooner:
        until then gradients take the memory.

        Raises:
            NonFiniteLossError: on every rank alike. Earlier updates of the step may have been applied.
        """
        scores = self._score()
        experience = make_experience(self._batch, scores, self._algorithm, self._runner.device)
        updates: list[dict[str, float]] = []
        raw_log_probs = scores.raw_log_probs
        for samples in self._mini_batches():
            shards = self._runner.cut(self._batch, samples)
            rows, update = self._update(experience, shards, is_first=not updates)
            updates.append(update)
            if raw_log_probs is None:
                # The only update of the step: its forward pass saw the policy of the start of the step.
                raw_log_probs = np.empty(self._batch.num_response_tokens, dtype=np.float32)
                raw_log_probs[tokens_of(shards)] = rows.raw_log_probs.cpu().numpy()
        assert raw_log_probs is not None
        return {
            **metrics.batch_metrics(self._batch, self._state.num_steps),
            **metrics.experience_metrics(self._batch, experience),
            **metrics.mismatch_metrics(self._batch, raw_log_probs, self._state.num_steps),
            **metrics.reference_metrics(scores),
            **metrics.average(updates),
        }

    def _mini_batches(self) -> list[NDArray[np.int64]]:
        algorithm = self._algorithm
        return [
            samples
            for epoch in range(algorithm.num_epochs)
            for samples in mini_batches(
                self._batch.num_samples,
                algorithm.num_mini_batches,
                seed=self._seed,
                step=self._state.num_steps,
                epoch=epoch,
            )
        ]

    def _score(self) -> Scores:
        """Forward passes before the first update: no more than the step needs."""
        state, temperature = self._state, self._temperature
        needs_log_probs = (
            state.reference is not None or self._algorithm.num_epochs > 1 or self._algorithm.num_mini_batches > 1
        )

        native = self._runner.native_policy(state.policy, self._batch) if needs_log_probs else None
        has_reference = state.reference is not None
        native_reference = self._runner.native_policy(state.reference, self._batch) if has_reference else None

        def columns(inputs: ShardInputs) -> list[Tensor]:
            found = [response_values(state.critic, inputs)]
            if needs_log_probs:
                found += policy_log_probs(state.policy, inputs, temperature=temperature, native=native)
            if has_reference:
                log_probs, _ = policy_log_probs(
                    state.reference, inputs, temperature=temperature, native=native_reference
                )
                found.append(log_probs)
            return found

        num_columns = 1 + 2 * needs_log_probs + has_reference
        scored = self._runner.score(self._batch, columns, num_columns)
        return Scores(
            values=scored[0],
            log_probs=scored[1] if needs_log_probs else None,
            raw_log_probs=scored[2] if needs_log_probs else None,
            reference_log_probs=scored[3] if has_reference else None,
            final_values=self._final_values() if self._algorithm.bootstrap_truncated else None,
        )

    def _final_values(self) -> NDArray[np.float32]:
        """[B] the critic's value of the state after a sample that was cut; 0 for all others."""
        final_values = np.zeros(self._batch.num_samples, dtype=np.float32)
        cut = np.flatnonzero(self._batch.is_truncated)
        if len(cut):
            critic, samples = self._state.critic, self._batch.select(cut)
            (values,) = self._runner.score(
                samples, lambda inputs: [response_values(critic, inputs)], num_columns=1, states_after=True
            )
            final_values[cut] = values[np.cumsum(samples.response_lengths) - 1]
        return final_values

    def _update(
        self, experience: Experience, shards: Sequence[LogicalShard], *, is_first: bool
    ) -> tuple[_TokenRows, dict[str, float]]:
        """One optimizer update on a mini-batch, given as its logical shards."""
        flat, optimizer, runner = self._state.flat, self._state.optimizer, self._runner
        num_tokens = sum(len(shard.tokens) for shard in shards)
        rows_of_shard: dict[int, Tensor] = {}
        native = runner.native_policy(self._state.policy, self._batch)

        def shard_gradient(leaf: int) -> Tensor:
            gradient = torch.zeros_like(flat.vector)
            flat.collect_gradients_in(gradient)
            rows_of_shard[leaf] = torch.cat(
                [
                    self._backward(experience, part, num_tokens, native)
                    for part in runner.passes(self._batch, shards[leaf])
                ]
            )
            flat.drop_gradients()
            return gradient

        gradient = sum_over_leaves(
            runner.group, len(shards), shard_gradient, num_elements=flat.vector.numel(), device=runner.device
        )
        num_columns = 3 + (self._algorithm.entropy_coefficient > 0)
        rows = _TokenRows(*runner.gather(shards, rows_of_shard, num_columns).unbind(dim=1))
        norms = optimizer.gradient_norms(gradient)
        update = self._update_metrics(experience, self._indices(shards), rows) | {
            "actor/grad_norm": norms["policy"],
            "actor/lr": optimizer.learning_rates()["policy"],
            "critic/grad_norm": norms["critic"],
            "critic/lr": optimizer.learning_rates()["critic"],
        }
        self._check_finite(update)
        if is_first:
            self._state.remember()
        optimizer.update(gradient, norms)
        return rows, update

    def _backward(
        self, experience: Experience, part: LogicalShard, num_tokens: int, native: NativePolicy | None
    ) -> Tensor:
        """Add the gradient of one pass's part of the mini-batch's mean loss; return its ``_TokenRows`` as [a, C]."""
        algorithm, state, runner = self._algorithm, self._state, self._runner
        inputs, tokens = runner.inputs(self._batch, part), self._indices([part])

        def policy_loss(rows: slice, outputs: HeadOutputs) -> Tensor:
            loss = policy_terms(algorithm, experience, tokens[rows], outputs.log_probs).loss.per_token
            if outputs.entropies is not None:
                loss = loss - algorithm.entropy_coefficient * outputs.entropies
            return loss.sum() / num_tokens

        # One network after the other, so that the activations of only one are alive.
        outputs = policy_backward(
            state.policy,
            inputs,
            policy_loss,
            temperature=self._temperature,
            with_entropy=algorithm.entropy_coefficient > 0,
            autocast=runner.autocast,
            native=native,
        )
        with runner.autocast():
            values = response_values(state.critic, inputs)
        value_loss = algorithm.value_coefficient * value_term(algorithm, experience, tokens, values).per_token
        (value_loss.sum() / num_tokens).backward()  # type: ignore[no-untyped-call]
        columns = [outputs.log_probs, outputs.raw_log_probs, values.detach()]
        if outputs.entropies is not None:
            columns.append(outputs.entropies)
        return torch.stack(columns, dim=1)

    def _update_metrics(self, experience: Experience, tokens: Tensor, rows: _TokenRows) -> dict[str, float]:
        """Losses over all tokens of the mini-batch, computed again from what was gathered."""
        return metrics.update_metrics(
            policy_terms(self._algorithm, experience, tokens, rows.log_probs),
            value_term(self._algorithm, experience, tokens, rows.values),
            log_probs=rows.log_probs,
            entropies=rows.entropies,
            behaviour_log_probs=experience.behaviour_log_probs[tokens],
        )

    def _check_finite(self, update: dict[str, float]) -> None:
        """Every rank sees the same gathered numbers, so all stop or none."""
        judged = ("actor/pg_loss", "critic/vf_loss", "actor/entropy", "actor/grad_norm", "critic/grad_norm")
        if all(math.isfinite(update[name]) for name in judged):
            return
        found = ", ".join(f"{name} {update[name]:g}" for name in judged)
        raise NonFiniteLossError(f"step {self._state.num_steps + 1} is not finite and was not applied: {found}")

    def _indices(self, shards: Sequence[LogicalShard]) -> Tensor:
        return torch.from_numpy(tokens_of(shards)).to(self._runner.device)
