"""All networks of one rank in DeepSpeed, in one group.

Legend: B samples and A response tokens of the batch, a response tokens of a pass or a mini-batch, C columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.base import CRITIC, POLICY, Gradient, Losses, PolicyOutputs, Scores, Wanted
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig
from rlserve.trainers.backends.deepspeed.held_state import PARAMETERS, HeldState, Pieces
from rlserve.trainers.backends.deepspeed.layout import REFERENCE, ParameterLayout
from rlserve.trainers.backends.deepspeed.networks import PolicyPass, as_passes, policy_outputs, values_of_pass
from rlserve.trainers.backends.deepspeed.passes import PassPlan, plan_passes, score_tokens
from rlserve.trainers.backends.deepspeed.zero_engine import FrozenEngine, ZeroEngine, forget_earlier_modules
from rlserve.trainers.backends.pytorch.shards import LogicalShard, padding_share, shard_inputs
from rlserve.trainers.backends.spread.whole_tensors import gather_whole_tensors
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group, LocalGroup


class LiveEngines:
    """Made, and called, by all ranks together, but for what says otherwise."""

    def __init__(
        self,
        config: DeepSpeedTrainerConfig,
        networks: Mapping[str, Any],
        layout: ParameterLayout,
        group: Group,
        *,
        temperature: float,
        device: torch.device,
    ) -> None:
        """``networks`` have any content, and are DeepSpeed's from now on."""
        self._config, self._layout, self._group = config, layout, group
        self._device = device
        forget_earlier_modules()
        passes = as_passes(networks, temperature=temperature)
        parameters = {name: dict(network.named_parameters()) for name, network in networks.items()}
        self._trained = {
            names: ZeroEngine(
                module,
                {parameters[name][each.name]: each for name in names for each in layout.places[name].values()},
                config,
                group,
                device,
            )
            for names, module in passes.items()
            if names != (REFERENCE,)
        }
        """By the networks that one pass goes through."""
        self._engine_of = {name: engine for names, engine in self._trained.items() for name in names}
        self._reference: Any = None
        self._frozen: FrozenEngine | None = None
        if REFERENCE in networks:
            reference = passes[REFERENCE,]
            if config.zero_stage == 3:
                assert isinstance(reference, PolicyPass)
                self._frozen = FrozenEngine(reference, layout.places[REFERENCE], config, device)
            self._reference = reference if self._frozen is not None else reference.to(device)
        self._policy_weights: dict[str, Tensor] = {}
        """Under stage 3: this rank's tensors of the policy after the last step, in host memory."""

    def write(self, held: HeldState) -> None:
        """Take over what this rank should have."""
        for engine in self._trained.values():
            engine.write(held.vectors, held.progress.num_updates)
        if self._frozen is not None:
            self._frozen.write(held.vectors[PARAMETERS])
        else:
            with torch.no_grad():
                for name, parameter in self._reference_parameters().items():
                    elements = self._layout.places[REFERENCE][name].elements
                    parameter.copy_(held.vectors[PARAMETERS].read(elements).view(parameter.shape))
        self._gather_policy_weights()

    def read(self) -> dict[str, Pieces]:
        """Copies of what this rank has, in host memory. No other rank is asked."""
        found: dict[str, list[Any]] = {}
        parts = [engine.read() for engine in self._trained.values()]
        if self._frozen is not None:
            parts.append({PARAMETERS: self._frozen.read()})
        else:
            frozen = [
                (self._layout.places[REFERENCE][name].elements, parameter.detach().flatten().to("cpu", copy=True))
                for name, parameter in self._reference_parameters().items()
            ]
            parts.append({PARAMETERS: Pieces(frozen)})
        for part in parts:
            for vector, pieces in part.items():
                found.setdefault(vector, []).extend(pieces.items())
        return {vector: Pieces(pieces) for vector, pieces in found.items()}

    def policy_parameters(self) -> dict[str, Tensor]:
        """Those that are trained, whole: all of them, or under stage 3 some, in host memory, where nobody changes them.
        No other rank is asked."""
        if self._config.zero_stage == 3:
            return dict(self._policy_weights)
        return self._engine_of[POLICY].policy_parameters()

    def score(self, batch: Batch, wanted: Wanted) -> Scores:
        """As ``Backend.score``."""
        modules = {name: engine.module for name, engine in self._engine_of.items()} | {REFERENCE: self._reference}
        return self._score(batch, wanted, modules, self._group)

    def score_alone(self, batch: Batch, wanted: Wanted) -> Scores:
        """As ``score``, without other ranks."""
        assert self._config.zero_stage < 3, "under stage 3 all ranks go through a network together"
        return self._score(batch, wanted, {POLICY: self._engine_of[POLICY].module}, LocalGroup())

    def compute_gradient(
        self, batch: Batch, samples: NDArray[np.int64], losses: Losses, learning_rates: Mapping[str, float]
    ) -> Gradient:
        """As ``Backend.compute_gradient``."""
        plan = self._plan(batch, samples, self._group)
        columns: list[Tensor] = []
        norms: dict[str, float] = {}
        for names, engine in self._trained.items():
            backward = self._critic_backward if names == (CRITIC,) else self._policy_backward
            rows = self._go_backward(engine, batch, plan, losses, backward)
            norms |= dict.fromkeys(names, engine.gradient_norm())
            num_columns = (2 + losses.with_entropies) * (POLICY in names) + (CRITIC in names)
            columns += list(plan.gather(self._group, rows, num_columns, self._device).unbind(dim=1))
        return Gradient(
            tokens=plan.tokens,
            policy=PolicyOutputs(
                log_probs=columns[0],
                raw_log_probs=columns[1],
                entropies=columns[2] if losses.with_entropies else None,
            ),
            values=columns[-1] if CRITIC in self._engine_of else None,
            norms=norms,
            padding_share=padding_share(batch, plan.computed),
            learning_rates=learning_rates,
        )

    def step(self, learning_rates: Mapping[str, float]) -> None:
        """Apply the gradients."""
        for engine in self._trained.values():
            engine.step(learning_rates)

    def complete_step(self) -> None:
        """After the last update of a step."""
        self._gather_policy_weights()

    def destroy(self) -> None:
        """Let go of what is in the memory of a device."""
        for engine in self._trained.values():
            engine.destroy()
        if self._frozen is not None:
            self._frozen.destroy()
        self._trained, self._engine_of = {}, {}
        self._reference = self._frozen = None
        self._policy_weights = {}
        forget_earlier_modules()

    def _gather_policy_weights(self) -> None:
        self._policy_weights = {}
        if self._config.zero_stage == 3:
            parts = self._engine_of[POLICY].parts()
            tensors = self._layout.spread_policy(self._group.num_ranks)
            self._policy_weights = gather_whole_tensors(tensors, parts.read, self._group, self._device)

    def _reference_parameters(self) -> dict[str, Tensor]:
        """Of one that every rank has whole; with LoRA it is no state."""
        if self._reference is None or REFERENCE not in self._layout.places:
            return {}
        return dict(self._reference.policy.named_parameters())

    def _plan(self, batch: Batch, samples: NDArray[np.int64], group: Group) -> PassPlan:
        return plan_passes(batch, samples, group.num_ranks, self._config.ppo_max_token_len_per_gpu)

    def _go_backward(
        self,
        engine: ZeroEngine,
        batch: Batch,
        plan: PassPlan,
        losses: Losses,
        backward: Callable[[ZeroEngine, Any, Tensor, Losses], tuple[Tensor, Tensor]],
    ) -> list[Tensor]:
        """The rows [a, C] of this rank's passes that count."""
        rows, passes = [], plan.passes(self._group.rank)
        for number, each in enumerate(passes, 1):
            tokens = torch.from_numpy(each.part.tokens).to(self._device)
            loss, found = backward(engine, shard_inputs(batch, each.part, self._device), tokens, losses)
            engine.backward(loss if each.counts else loss * 0.0, completes=number == len(passes))
            if each.counts:
                rows.append(found)
        return rows

    def _policy_backward(
        self, engine: ZeroEngine, inputs: Any, tokens: Tensor, losses: Losses
    ) -> tuple[Tensor, Tensor]:
        """Also of the values of a critic on the policy's trunk."""
        found = engine.forward(inputs, losses.with_entropies)
        loss, values = losses.policy(tokens, policy_outputs(found)), found[-1]
        if values is not None:
            assert losses.value is not None
            loss = loss + losses.value(tokens, values)
        return loss, torch.stack([column for column in found if column is not None], dim=1).detach()

    def _critic_backward(
        self, engine: ZeroEngine, inputs: Any, tokens: Tensor, losses: Losses
    ) -> tuple[Tensor, Tensor]:
        assert losses.value is not None
        values = engine.forward(inputs)
        return losses.value(tokens, values), values.detach()[:, None]

    def _score(self, batch: Batch, wanted: Wanted, modules: Mapping[str, Any], group: Group) -> Scores:
        names = ["log_probs", "raw_log_probs"] * wanted.policy
        names += ["entropies"] * wanted.entropies
        names += ["values"] * wanted.values
        names += ["reference_log_probs"] * wanted.reference

        def columns(part: LogicalShard) -> Sequence[Tensor]:
            inputs, found = shard_inputs(batch, part, self._device), []
            values: Tensor | None = None
            with self._autocast():
                if wanted.policy:
                    *of_policy, values = modules[POLICY](inputs, wanted.entropies)
                    found += [column for column in of_policy if column is not None]
                if wanted.values:
                    found.append(values if values is not None else values_of_pass(modules[CRITIC], inputs))
                if wanted.reference:
                    found.append(modules[REFERENCE](inputs)[0])
            return found

        plan = self._plan(batch, np.arange(batch.num_samples), group)
        num_tokens = batch.num_response_tokens
        scored = {}
        if names:
            found = score_tokens(group, plan, columns, len(names), num_response_tokens=num_tokens, device=self._device)
            scored = dict(zip(names, found, strict=True))
        return Scores(**scored, final_values=self._final_values(batch) if wanted.final_values else None)

    def _final_values(self, batch: Batch) -> NDArray[np.float32]:
        """[B] the critic's value of the state after a sample that was cut; 0 for all others."""
        final_values = np.zeros(batch.num_samples, dtype=np.float32)
        cut = np.flatnonzero(batch.is_truncated)
        if len(cut):
            samples = batch.select(cut)
            # The last token counts, whoever made it.
            samples = dataclasses.replace(samples, loss_mask=np.ones_like(samples.loss_mask))
            module = self._engine_of[CRITIC].module

            def columns(part: LogicalShard) -> Sequence[Tensor]:
                with self._autocast():
                    return [values_of_pass(module, shard_inputs(samples, part, self._device, states_after=True))]

            (values,) = score_tokens(
                self._group,
                self._plan(samples, np.arange(samples.num_samples), self._group),
                columns,
                1,
                num_response_tokens=samples.num_response_tokens,
                device=self._device,
            )
            final_values[cut] = values[np.cumsum(samples.response_lengths) - 1]
        return final_values

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._config.dtype == "bfloat16")
