"""One training step: what joins an algorithm and a backend.

    batch ──► scores ──► experience ──► credit ──► columns per token
             (backend)                 (algorithm)       │
      ┌── for each epoch, mini-batch ◄───────────────────┘
      │
      └─► gradient ──► metrics ──► finite? ──► update          losses of the algorithm,
         (backend)                   │ no     (backend)        gradients of the backend
                                     ▼
                            NonFiniteLossError

The same on every rank, since everything that a backend returns is.

Legend: B samples and A response tokens of the batch, K of which are trained on; S samples and a trained tokens of a
mini-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.errors import NonFiniteLossError
from rlserve.trainers import metrics
from rlserve.trainers.algorithms.aggregation import mean_weights
from rlserve.trainers.algorithms.base import (
    ActorCritic,
    Algorithm,
    Credit,
    Experience,
    PolicyLoss,
    PolicyTokens,
    ValueLoss,
    ValueTokens,
)
from rlserve.trainers.algorithms.supervised.base import Supervised
from rlserve.trainers.backends.base import (
    CRITIC,
    CRITIC_HEAD,
    POLICY,
    Backend,
    Gradient,
    Losses,
    PolicyOutputs,
    Scores,
    Wanted,
)
from rlserve.trainers.batch import Batch
from rlserve.trainers.experience import experience_of
from rlserve.trainers.mini_batches import mini_batches

_PREFIXES = {POLICY: "actor", CRITIC: "critic"}
"""Of the metrics of each network."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenColumns:
    """What the losses look at and no update changes: [A] tensors on the backend's device, those of float32 0 at
    tokens that are not trained on."""

    behaviour_log_probs: Tensor
    advantages: Tensor
    old_log_probs: Tensor | None
    """None where the step makes a single update: then the current policy *is* the old one, and the forward pass
    of the update gives its log-probabilities."""
    reference_log_probs: Tensor | None
    old_values: Tensor | None
    returns: Tensor | None
    samples: Tensor
    """[A] int64: the sample that each token is of."""
    is_selected: Tensor | None
    """[A] bool: ``Credit.is_selected``."""
    in_surrogate: Tensor | None
    """[A] bool: ``Credit.in_surrogate``."""
    is_kept: NDArray[np.bool_]
    """[A] False at tokens that the losses leave out."""
    is_imitated: NDArray[np.bool_] | None
    """[A] ``Credit.is_imitated``."""


class TrainingStep:
    """One object serves one batch."""

    def __init__(self, algorithm: Algorithm, backend: Backend, *, batch: Batch, num_left_out: int, seed: int) -> None:
        """``num_left_out`` samples are not in the batch, which is a metric."""
        self._algorithm = algorithm
        self._backend = backend
        self._batch = batch
        self._num_left_out = num_left_out
        self._seed = seed

    def run(self) -> dict[str, float]:
        """Update the policy (and the critic); return the metrics.

        Raises:
            NonFiniteLossError: on every rank alike. Earlier updates of the step may have been applied.
        """
        self._backend.begin_step()
        scores = self._backend.score(self._batch, self._wanted())
        experience = experience_of(self._batch, scores, self._backend.carried)
        credit = self._algorithm.credit(experience)
        columns = self._columns(scores, credit)
        updates: list[dict[str, float]] = []
        log_probs, raw_log_probs = scores.log_probs, scores.raw_log_probs
        parts = self._mini_batches()
        for number, samples in enumerate(parts, 1):
            is_last = number == len(parts)
            gradient, update = self._gradient(columns, samples, completes_step=is_last)
            self._check_finite(update)
            updates.append(update)
            if gradient.policy is not None and log_probs is None:
                # The only update of the step: its forward pass saw the policy of the start of the step.
                log_probs = self._in_batch_order(gradient, gradient.policy.log_probs)
                raw_log_probs = self._in_batch_order(gradient, gradient.policy.raw_log_probs)
            if not is_last:
                self._backend.update()
        found = {
            **self._about_samples(experience, credit, log_probs, raw_log_probs),
            **metrics.average(updates),
            "training/num_nonfinite_samples": float(self._num_left_out),
        }
        self._backend.complete_step(found, credit.carried)
        return found

    def _about_samples(
        self,
        experience: Experience,
        credit: Credit,
        log_probs: NDArray[np.float32] | None,
        raw_log_probs: NDArray[np.float32] | None,
    ) -> dict[str, float]:
        """Metrics of the samples; the log-probabilities [A] are those of the start of the step, None of a model that
        scores."""
        batch, num_steps = self._batch, self._backend.num_steps
        trained = None if log_probs is None else log_probs[batch.loss_mask]
        if isinstance(self._algorithm, Supervised):
            judged = self._algorithm.judge(replace(experience, log_probs=trained))
            return {**metrics.length_metrics(batch), **{f"train/{name}": value for name, value in judged.items()}}
        assert trained is not None
        assert raw_log_probs is not None
        return {
            **metrics.batch_metrics(batch, num_steps),
            **metrics.credit_metrics(experience, credit),
            **metrics.mismatch_metrics(batch, raw_log_probs, num_steps),
            **metrics.reference_metrics(trained, experience.reference_log_probs),
        }

    def _in_batch_order(self, gradient: Gradient, per_token: Tensor) -> NDArray[np.float32]:
        """[A] numbers of a mini-batch's tokens, 0 at all others."""
        array_A = np.zeros(self._batch.num_response_tokens, dtype=np.float32)
        array_A[gradient.tokens] = per_token.cpu().numpy()
        return array_A

    def _mini_batches(self) -> list[NDArray[np.int64]]:
        return [
            samples
            for epoch in range(self._algorithm.num_epochs)
            for samples in mini_batches(
                self._batch.num_samples,
                self._algorithm.num_mini_batches,
                seed=self._seed,
                step=self._backend.num_steps,
                epoch=epoch,
            )
        ]

    def _wanted(self) -> Wanted:
        needs = self._algorithm.needs
        makes_several_updates = self._algorithm.num_epochs > 1 or self._algorithm.num_mini_batches > 1
        return Wanted(
            policy=needs.log_probs or makes_several_updates,
            entropies=needs.old_entropies,
            reference=needs.reference,
            values=needs.critic or needs.scores,
            final_values=needs.final_values,
            for_only_update=not makes_several_updates,
        )

    def _columns(self, scores: Scores, credit: Credit) -> TokenColumns:
        device, is_trained = self._backend.device, self._batch.loss_mask

        def from_batch(array_A: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(np.where(is_trained, array_A, np.float32(0))).to(device)

        def from_credit(array_K: NDArray[np.float64]) -> Tensor:
            array_A = np.zeros(len(is_trained), dtype=np.float32)
            array_A[is_trained] = array_K
            return torch.from_numpy(array_A).to(device)

        def marked(marks_K: NDArray[np.bool_]) -> NDArray[np.bool_]:
            marks_A = np.zeros(len(is_trained), dtype=bool)
            marks_A[is_trained] = marks_K
            return marks_A

        def marks(marks_K: NDArray[np.bool_] | None) -> Tensor | None:
            return None if marks_K is None else torch.from_numpy(marked(marks_K)).to(device)

        def if_any(array_A: NDArray[np.float32] | None) -> Tensor | None:
            return None if array_A is None else from_batch(array_A)

        sample_of_token = np.repeat(np.arange(self._batch.num_samples), self._batch.response_lengths)
        return TokenColumns(
            behaviour_log_probs=from_batch(self._batch.behaviour_log_probs),
            advantages=from_credit(credit.policy_advantages),
            old_log_probs=if_any(scores.log_probs),
            reference_log_probs=if_any(scores.reference_log_probs),
            old_values=if_any(scores.values),
            returns=None if credit.returns is None else from_credit(credit.returns),
            samples=torch.from_numpy(sample_of_token).to(device),
            is_selected=marks(credit.is_selected),
            in_surrogate=marks(credit.in_surrogate),
            is_kept=is_trained if credit.is_kept is None else marked(credit.is_kept),
            is_imitated=None if credit.is_imitated is None else marked(credit.is_imitated),
        )

    def _gradient(
        self, columns: TokenColumns, samples: NDArray[np.int64], *, completes_step: bool
    ) -> tuple[Gradient, dict[str, float]]:
        """The gradient of one mini-batch, and the update's metrics."""
        objective = MiniBatchObjective(self._algorithm, columns, self._batch, samples)
        gradient = self._backend.compute_gradient(
            self._batch, samples, objective.losses(), completes_step=completes_step
        )
        update = {**objective.metrics(gradient), "perf/padding_share": gradient.padding_share}
        for network, prefix in _PREFIXES.items():
            if network in gradient.norms:
                update[f"{prefix}/grad_norm"] = gradient.norms[network]
                update[f"{prefix}/lr"] = gradient.learning_rates[network]
        if CRITIC_HEAD in gradient.learning_rates:
            update["critic/head_lr"] = gradient.learning_rates[CRITIC_HEAD]
        return gradient, update

    def _check_finite(self, update: dict[str, float]) -> None:
        """Every rank sees the same numbers, so all stop or none."""
        judged = [name for name in update if name.endswith(("_loss", "/loss", "/entropy", "/grad_norm"))]
        if all(math.isfinite(update[name]) for name in judged):
            return
        found = ", ".join(f"{name} {update[name]:g}" for name in judged)
        raise NonFiniteLossError(f"step {self._backend.num_steps + 1} is not finite and was not applied: {found}")


class MiniBatchObjective:
    """What is minimised over one mini-batch: the algorithm's losses of its tokens, weighted."""

    def __init__(self, algorithm: Algorithm, columns: TokenColumns, batch: Batch, samples: NDArray[np.int64]) -> None:
        tokens = batch.tokens_of(samples)
        weights = algorithm.token_weights(batch.trained_lengths[samples], columns.is_kept[tokens])
        self._algorithm = algorithm
        self._columns = columns
        self._normaliser = weights.normaliser

        def column(of_tokens: NDArray[np.float32]) -> Tensor:
            array_A = np.zeros(batch.num_response_tokens, dtype=np.float32)
            array_A[tokens] = of_tokens
            return torch.from_numpy(array_A).to(columns.advantages.device)

        self._weights_A = column(weights.per_token)
        self._imitation_weights_A = None
        if columns.is_imitated is not None:
            self._imitation_weights_A = column(mean_weights(columns.is_imitated[tokens], weights))

    def losses(self) -> Losses:
        """For the backend, which goes backward through them."""
        needs = self._algorithm.needs
        return Losses(
            policy=self._summed_policy_loss,
            value=self._summed_value_loss if needs.critic or needs.scores else None,
            with_entropies=needs.entropies,
            of_whole_samples=needs.whole_samples,
        )

    def metrics(self, gradient: Gradient) -> dict[str, float]:
        """Losses over all tokens of the mini-batch, computed again from what was gathered."""
        tokens = torch.from_numpy(gradient.tokens).to(self._weights_A.device)
        losses: list[PolicyLoss | ValueLoss] = []
        found: dict[str, float] = {}
        if gradient.policy is not None:
            policy_tokens = self._policy_tokens(tokens, gradient.policy)
            losses.append(self._algorithm.policy_loss(policy_tokens))
            if self._algorithm.needs.rollouts:
                found |= metrics.policy_metrics(policy_tokens)
        if gradient.values is not None:
            losses.append(self._value_loss(tokens, gradient.values))
        for loss in losses:
            found |= metrics.loss_metrics(loss, self._weights_A[tokens], self._normaliser)
        return found

    def _summed_policy_loss(self, tokens: Tensor, outputs: PolicyOutputs) -> Tensor:
        return self._sum(self._algorithm.policy_loss(self._policy_tokens(tokens, outputs)).per_token, tokens)

    def _summed_value_loss(self, tokens: Tensor, values: Tensor) -> Tensor:
        return self._sum(self._value_loss(tokens, values).per_token, tokens)

    def _sum(self, per_token: Tensor, tokens: Tensor) -> Tensor:
        return (per_token * self._weights_A[tokens]).sum() / self._normaliser

    def _policy_tokens(self, tokens: Tensor, outputs: PolicyOutputs) -> PolicyTokens:
        columns = self._columns
        old, reference, imitation = columns.old_log_probs, columns.reference_log_probs, self._imitation_weights_A
        return PolicyTokens(
            log_probs=outputs.log_probs,
            old_log_probs=outputs.log_probs.detach() if old is None else old[tokens],
            behaviour_log_probs=columns.behaviour_log_probs[tokens],
            reference_log_probs=None if reference is None else reference[tokens],
            advantages=columns.advantages[tokens],
            entropies=outputs.entropies,
            samples=columns.samples[tokens],
            is_selected=None if columns.is_selected is None else columns.is_selected[tokens],
            in_surrogate=None if columns.in_surrogate is None else columns.in_surrogate[tokens],
            imitation_weights=None if imitation is None else imitation[tokens],
        )

    def _value_loss(self, tokens: Tensor, values: Tensor) -> ValueLoss:
        old_values, returns = self._columns.old_values, self._columns.returns
        assert isinstance(self._algorithm, ActorCritic)
        assert old_values is not None
        assert returns is not None
        return self._algorithm.value_loss(
            ValueTokens(values=values, old_values=old_values[tokens], returns=returns[tokens])
        )
