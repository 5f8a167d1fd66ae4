"""Forward passes before the first update of a step: no more than the step needs.

Legend: B samples of the batch, A response tokens of the batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.base import Scores, Wanted
from rlserve.trainers.backends.pytorch.kept_passes import KeptPasses
from rlserve.trainers.backends.pytorch.models import policy_outputs, response_states, response_values, values_of
from rlserve.trainers.backends.pytorch.runner import ShardRunner
from rlserve.trainers.backends.pytorch.shards import LogicalShard, PassInputs
from rlserve.trainers.batch import Batch


class ScoredNetworks(Protocol):
    """Those that there are, as ``models`` takes them."""

    policy: Any
    valuer: Any
    """Whoever says values."""
    shares_trunk: bool
    """Whether that is a head on the policy's last hidden states."""
    reference: Any


def score_batch(
    networks: ScoredNetworks, runner: ShardRunner, batch: Batch, wanted: Wanted, *, temperature: float, kept: KeptPasses
) -> Scores:
    """What the networks say about the batch; gathered, so the same on every rank. Passes for values are
    kept in ``kept`` where they will be needed again and there is room for them."""
    kept.clear()
    keeps_passes = wanted.values and wanted.for_only_update and runner.fits_one_pass(batch)
    native = runner.native_policy(networks.policy, batch) if wanted.policy else None
    native_reference = runner.native_policy(networks.reference, batch) if wanted.reference else None
    names = ["values"] * wanted.values
    names += ["log_probs", "raw_log_probs"] * wanted.policy
    names += ["entropies"] * wanted.entropies
    names += ["reference_log_probs"] * wanted.reference

    def columns(part: LogicalShard, inputs: PassInputs) -> list[Tensor]:
        found: list[Tensor] = []
        states_aH: Tensor | None = None
        if wanted.values:
            with torch.set_grad_enabled(keeps_passes):
                if networks.shares_trunk:
                    kept_of_pass = states_aH = response_states(networks.valuer.backbone, inputs)
                    values = values_of(networks.valuer.value_head, states_aH)
                else:
                    kept_of_pass = values = response_values(networks.valuer, inputs)
            if keeps_passes:
                kept.keep(part, kept_of_pass)
            found.append(values.detach())
        if wanted.policy:
            outputs = policy_outputs(
                networks.policy,
                inputs,
                temperature=temperature,
                native=native,
                with_entropy=wanted.entropies,
                states_aH=states_aH,
            )
            found += [outputs.log_probs, outputs.raw_log_probs]
            found += [] if outputs.entropies is None else [outputs.entropies]
        if wanted.reference:
            outputs = policy_outputs(networks.reference, inputs, temperature=temperature, native=native_reference)
            found.append(outputs.log_probs)
        return found

    scored = dict(zip(names, runner.score(batch, columns, len(names)), strict=True)) if names else {}
    return Scores(**scored, final_values=_final_values(networks, runner, batch) if wanted.final_values else None)


def _final_values(networks: ScoredNetworks, runner: ShardRunner, batch: Batch) -> NDArray[np.float32]:
    """[B] the critic's value of the state after a sample that was cut; 0 for all others."""
    final_values = np.zeros(batch.num_samples, dtype=np.float32)
    cut = np.flatnonzero(batch.is_truncated)
    if len(cut):
        samples = batch.select(cut)
        # The last token counts, whoever made it.
        samples = dataclasses.replace(samples, loss_mask=np.ones_like(samples.loss_mask))
        (values,) = runner.score(
            samples, lambda _, inputs: [response_values(networks.valuer, inputs)], num_columns=1, states_after=True
        )
        final_values[cut] = values[np.cumsum(samples.response_lengths) - 1]
    return final_values
