"""One rank in plain PyTorch: its networks, its state and its place in a group.

    compute_gradient:  | gradient of own shards | ──► sum in the fixed tree ──► norms      one network after the other
    update:            clip ──► AdamW on the shards of the state that this rank holds ──► gather the parameters

Once a gradient is computed every rank has what it needs of it, so that whoever is lost from then on, the others can
apply it.

What a logical shard computes depends on the shard alone, and what is added up is added in an order that depends
on the shards alone. So the result does not depend, to the bit, on which rank computed what, as long as all ranks
compute a shard alike: the same kind of processor, and on CPU the same number of threads.

Legend: a response tokens of a pass, a shard or a mini-batch, C columns.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.base import (
    Backend,
    Gradient,
    Losses,
    Networks,
    PolicyOutputs,
    Scores,
    Wanted,
)
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.adapters import adapter_weights
from rlserve.trainers.backends.pytorch.arrival import Arrival
from rlserve.trainers.backends.pytorch.backward import BackwardPasses
from rlserve.trainers.backends.pytorch.fused.choice import resolve_kernels
from rlserve.trainers.backends.pytorch.fused.linear import rounding_once
from rlserve.trainers.backends.pytorch.gradients import sum_network_gradient
from rlserve.trainers.backends.pytorch.kept_passes import KeptPasses
from rlserve.trainers.backends.pytorch.models import checkpoint_weights
from rlserve.trainers.backends.pytorch.native_shape import check_supported, read_shape
from rlserve.trainers.backends.pytorch.packed.decoder import pack_layers
from rlserve.trainers.backends.pytorch.recomputed_layers import recompute_layers
from rlserve.trainers.backends.pytorch.resharding import reshard
from rlserve.trainers.backends.pytorch.runner import ShardRunner, tokens_of
from rlserve.trainers.backends.pytorch.saved_state import SavedState, StateInMemory
from rlserve.trainers.backends.pytorch.scoring import score_batch
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.backends.pytorch.state_copy import (
    AdaptersCopy,
    MergedScorerCopy,
    ModelCopy,
    PolicyCopy,
    ShardCopy,
)
from rlserve.trainers.backends.pytorch.state_files import StateFiles
from rlserve.trainers.base import Membership, Traffic
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.next_groups import NextGroups
from rlserve.trainers.elastic.standing import NOTHING


class TorchBackend(Backend):
    """See ``Backend`` for the contract and ``create_trainer`` for the arguments."""

    def __init__(
        self,
        config: TorchTrainerConfig,
        networks: Networks,
        *,
        model_path: str,
        seed: int,
        temperature: float,
        device: torch.device,
        load_weights: bool,
    ) -> None:
        assert temperature > 0
        self.device = device
        self.max_tokens_per_pass = config.ppo_max_token_len_per_gpu
        self._config = config
        self._networks = networks
        self._model_path = model_path
        self._seed = seed
        self._temperature = temperature
        self._group: Group = LocalGroup()
        self._next_groups = NextGroups(timeout_s=config.timeout_s, device=device)
        self._state: TrainingState | None = self._new_state(load_weights=load_weights)
        self._arrival: Arrival | None = None
        """Of state that still comes in, or is sent, beside the next step."""
        self._kept_passes = KeptPasses()

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def waits_for_others(self) -> bool:
        arrival = self._arrival
        return self._group.is_waiting or (arrival is not None and arrival.is_awaited)

    @property
    def num_steps(self) -> int:
        return self._held_state().progress.num_steps

    @property
    def last_metrics(self) -> dict[str, float]:
        return self._held_state().progress.metrics

    @property
    def carried(self) -> Mapping[str, float]:
        return self._held_state().progress.carried

    def score(self, batch: Batch, wanted: Wanted, *, alone: bool = False) -> Scores:
        state, runner = self._usable_state(), self._runner()
        if alone:  # nothing is spread, so nothing need be cut
            runner = runner.alone()
        with rounding_once(state.modules):
            return score_batch(state, runner, batch, wanted, temperature=self._temperature, kept=self._kept_passes)

    def compute_gradient(
        self, batch: Batch, samples: NDArray[np.int64], losses: Losses, *, completes_step: bool
    ) -> Gradient:
        state, runner = self._usable_state(), self._runner()
        shards = runner.cut(batch, samples)
        passes = [runner.passes(batch, shard) for shard in shards]
        backward = self._backward_passes(batch, losses)
        scores, has_values = self._networks.scores, state.valuer is not None
        own_parts: dict[str, list[Tensor]] = {}
        norms: dict[str, float] = {}
        rows: dict[int, Tensor] = {}
        for networks in state.trained_together:
            with rounding_once(state.modules):
                gradient, found = sum_network_gradient(
                    runner.group,
                    state.flat,
                    networks,
                    passes,
                    backward.of(networks),
                    in_parts=backward.in_parts(networks),
                )
            norms |= dict.fromkeys(networks, float(torch.linalg.vector_norm(gradient)))
            own_parts |= state.optimizer.own_parts(networks, gradient)
            del gradient
            rows = {
                leaf: torch.cat([rows[leaf], columns], dim=1) if rows else columns for leaf, columns in found.items()
            }
        self._kept_passes.clear()
        self._finish_arrival()
        state.progress.stage(own_parts, norms, completes_step=completes_step)
        # Whoever gets past this gather knows that all ranks have staged the update.
        num_columns = (0 if scores else 2 + losses.with_entropies) + has_values
        columns = list(runner.gather(shards, rows, num_columns).unbind(dim=1))
        return Gradient(
            tokens=tokens_of(shards),
            policy=None
            if scores
            else PolicyOutputs(
                log_probs=columns[0],
                raw_log_probs=columns[1],
                entropies=columns[2] if losses.with_entropies else None,
            ),
            values=columns[-1] if has_values else None,
            norms=norms,
            padding_share=runner.padding_share(batch, chain.from_iterable(passes)),
            learning_rates=state.optimizer.learning_rates(),
        )

    def begin_step(self) -> None:
        self._kept_passes.clear()  # of a step that was broken off
        self._held_state().progress.take_back()

    def update(self) -> None:
        self._apply()

    def complete_step(self, metrics: Mapping[str, float], carried: Mapping[str, float]) -> None:
        self._apply(metrics, carried)

    def take_back(self) -> None:
        state = self._held_state()
        state.progress.take_back()
        state.gather_parameters(self._group)

    def _apply(self, metrics: Mapping[str, float] | None = None, carried: Mapping[str, float] | None = None) -> None:
        state = self._held_state()
        state.progress.apply(metrics, carried)
        state.gather_parameters(self._group)

    def weights(self) -> dict[str, Tensor]:
        parameters = self._policy_parameters()
        return adapter_weights(parameters) if self._config.lora.is_on else checkpoint_weights(parameters)

    def save_pretrained(self, folder: Path) -> None:
        if self.rank > 0:
            return
        weights = {name: view.to("cpu", copy=True) for name, view in self._policy_parameters().items()}
        self._policy_copy(weights).write(folder)

    def state(self) -> dict[str, Tensor]:
        state = self._whole_state()
        names = [tensor.name for tensor in state.saved_tensors()]
        return dict(zip(names, state.gathered(self._group), strict=True))

    def copy_state(self) -> ShardCopy:
        return ShardCopy(self._whole_state(), self._group, self._policy_copy)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._load(StateInMemory(state))

    def load_files(self, folder: Path) -> None:
        self._load(StateFiles(folder))

    def _load(self, saved: SavedState) -> None:
        if self._state is None:
            self._state = self._new_state(load_weights=False)
        self._finish_arrival()
        self._state.load(saved)

    def meet(self, membership: Membership) -> None:
        self._next_groups.meet(membership)

    def break_off(self, generation: int) -> None:
        self._next_groups.break_off(generation)

    def resize(self, membership: Membership) -> Traffic:
        self._give_up_arrival()
        self._group.close()
        if self._state is None:
            self._state = self._new_state(load_weights=False)
        self._group = self._next_groups.take(membership)
        self._arrival, traffic = reshard(self._state, self._group, membership)
        return traffic

    def prepare(self) -> None:
        if self._state is None:
            self._state = self._new_state(load_weights=False)

    def sleep(self, *, offload: bool) -> None:
        self._kept_passes.clear()
        state = self._whole_state()
        state.progress.begin()
        if offload and self.device.type != "cpu":
            state.move(torch.device("cpu"))
        self._free_memory()

    def wake(self) -> None:
        state = self._held_state()
        if state.flat.vector.device.type != self.device.type:
            state.move(self.device)

    def leave(self) -> None:
        self._kept_passes.clear()
        self._give_up_arrival()
        self._group.close()
        self._next_groups.drop()
        self._group = LocalGroup()
        self._state = None
        self._free_memory()

    def _free_memory(self) -> None:
        if self.device.type == "cuda":
            gc.collect()  # modules refer to each other in circles, and keep their parameters until then
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def disconnect(self) -> None:
        if self._arrival is not None:
            self._arrival.interrupt()
        self._group.close()

    def _finish_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.finish()
            self._arrival = None

    def _give_up_arrival(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.give_up()

    def _backward_passes(self, batch: Batch, losses: Losses) -> BackwardPasses:
        state, runner = self._held_state(), self._runner()
        return BackwardPasses(
            state,
            runner,
            losses,
            temperature=self._temperature,
            inputs=cache(lambda part: runner.inputs(batch, part)),
            native=runner.native_policy(state.policy, batch),
            kept=self._kept_passes,
        )

    def _held_state(self) -> TrainingState:
        assert self._state is not None, "the trainer has left: resize or load_state brings it back"
        assert self._state.progress.num_steps != NOTHING, "built without weights: join a group, or load a state, first"
        return self._state

    def _usable_state(self) -> TrainingState:
        """With all parameters."""
        if self._arrival is not None:
            self._arrival.wait_for_parameters()
        return self._held_state()

    def _whole_state(self) -> TrainingState:
        """With all that this rank is to hold. All ranks call this together."""
        self._finish_arrival()
        return self._held_state()

    def _policy_copy(self, weights: Mapping[str, Tensor]) -> PolicyCopy:
        """Of the policy's parameters in host memory."""
        if self._config.lora.is_on and self._networks.scores:
            return MergedScorerCopy(weights, self._config.lora, self._model_path)
        if self._config.lora.is_on:
            return AdaptersCopy(adapter_weights(weights), self._config.lora, self._model_path)
        return ModelCopy(self._held_state().policy, weights)

    def _policy_parameters(self) -> dict[str, Tensor]:
        flat = self._usable_state().flat
        return flat.views("policy", flat.vector)

    def _runner(self) -> ShardRunner:
        return ShardRunner(self._config, self._group, self.device, is_packed=self._kernels == "native")

    def _new_state(self, *, load_weights: bool) -> TrainingState:
        state = TrainingState(
            self._config,
            self._networks,
            model_path=self._model_path,
            seed=self._seed,
            load_weights=load_weights,
            device=self.device,
        )
        if self._config.deterministic:
            check_supported(state.policy, self.device.type)
        self._kernels = resolve_kernels(self._config, state.policy, self.device)
        if self._kernels == "native":
            pack_layers(state.networks(), read_shape(state.policy), self._config)
        if self._kernels == "triton":
            from rlserve.trainers.backends.pytorch.fused.layers import fuse_layers  # needs Triton

            for network in state.networks():
                fuse_layers(network, getattr(torch, self._config.dtype))
        if self._config.activation_checkpointing and self._kernels != "native":  # which does so itself
            for network in state.networks():
                recompute_layers(network)
        return state
