"""One rank whose networks are cut up over the ranks of its group, by torch's ``fully_shard``.

    compute_gradient:  forward and backward over own samples; each layer: gather parameters, scatter sums of gradients
    update:            clip ──► AdamW on own rows ──► each rank gathers its tensors of the policy, for the engines

All ranks go through the networks together, so nothing that reads parameters can be asked of one rank alone. What a rank
holds is nowhere else: where one is lost, the state is. The bits depend on the number of ranks.

Legend: a response tokens of a pass, a shard or a mini-batch, C columns.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.base import (
    CRITIC,
    POLICY,
    Backend,
    Gradient,
    Losses,
    Networks,
    PolicyOutputs,
    Scores,
    Wanted,
)
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.fully_sharded.layout import REFERENCE, policy_name
from rlserve.trainers.backends.fully_sharded.mesh import Mesh
from rlserve.trainers.backends.fully_sharded.networks import ShardedNetworks
from rlserve.trainers.backends.fully_sharded.passes import NO_SAMPLES, LockstepRunner, without_tokens_nothing
from rlserve.trainers.backends.fully_sharded.resharding import cut_up_alone, reshard
from rlserve.trainers.backends.fully_sharded.state import HeldShards, ShardedState
from rlserve.trainers.backends.fully_sharded.state_copy import RowsCopy
from rlserve.trainers.backends.pytorch.backward import BackwardPasses
from rlserve.trainers.backends.pytorch.kept_passes import KeptPasses
from rlserve.trainers.backends.pytorch.models import checkpoint_weights
from rlserve.trainers.backends.pytorch.runner import tokens_of
from rlserve.trainers.backends.pytorch.saved_state import SavedState, StateInMemory
from rlserve.trainers.backends.pytorch.scoring import score_batch
from rlserve.trainers.backends.pytorch.shards import padding_share
from rlserve.trainers.backends.pytorch.state_copy import ModelCopy, PolicyCopy
from rlserve.trainers.backends.pytorch.state_files import StateFiles
from rlserve.trainers.backends.spread.policy_files import PolicyFiles
from rlserve.trainers.backends.spread.whole_tensors import SpreadTensor, gather_whole_tensors
from rlserve.trainers.base import Membership, Traffic
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.next_groups import NextGroups


class FullyShardedBackend(Backend):
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
        self._wanted_networks = networks
        self._model_path = model_path
        self._seed = seed
        self._temperature = temperature
        self._group: Group = LocalGroup()
        self._next_groups = NextGroups(timeout_s=config.timeout_s, device=device)
        self._state: ShardedState | None = self._new_state(load_weights=load_weights)
        self._mesh: Mesh | None = None
        self._networks: ShardedNetworks | None = None
        self._policy_weights: dict[str, Tensor] | None = None
        """Of one of several ranks: its tensors of the policy after the last step, in host memory."""

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def waits_for_others(self) -> bool:
        return self._group.is_waiting

    @property
    def num_steps(self) -> int:
        state = self._held_state()
        return 0 if state.held is None else state.held.progress.num_steps

    @property
    def last_metrics(self) -> dict[str, float]:
        return self._held().progress.metrics

    @property
    def carried(self) -> Mapping[str, float]:
        return self._held().progress.carried

    def score(self, batch: Batch, wanted: Wanted, *, alone: bool = False) -> Scores:
        assert not alone or self._group.num_ranks == 1, "all ranks go through a network together"
        networks, found = self._computing_networks(), Scores()
        asked = {
            POLICY: Wanted(policy=wanted.policy, entropies=wanted.entropies),
            REFERENCE: Wanted(reference=wanted.reference),
            CRITIC: Wanted(values=wanted.values, final_values=wanted.final_values),
        }
        if networks.shares_trunk:
            asked[POLICY] = replace(asked[POLICY], values=wanted.values, final_values=wanted.final_values)
            asked[CRITIC] = Wanted()
        # One network after the other, so that the parameters of one root at a time are whole.
        for network, part in asked.items():
            if part != Wanted():
                scored = score_batch(
                    networks, self._runner(), batch, part, temperature=self._temperature, kept=KeptPasses()
                )
                networks.reshard(network)
                found = replace(found, **{name: each for name, each in vars(scored).items() if each is not None})
        return found

    def compute_gradient(
        self, batch: Batch, samples: NDArray[np.int64], losses: Losses, *, completes_step: bool
    ) -> Gradient:
        held, networks, runner = self._held(), self._computing_networks(), self._runner()
        shards = runner.cut(batch, samples)
        own = runner.own(batch, shards)
        num_without_samples = runner.num_passes_without_samples(batch, shards)
        backward = self._backward_passes(batch, losses)
        own_parts: dict[str, list[Tensor]] = {}
        norms: dict[str, float] = {}
        rows: dict[int, Tensor] = {}
        for together in networks.trained_together:
            with networks.collecting_gradients(together) as gradient:
                go = backward.of(together)
                found = {
                    leaf: torch.cat([go(part)[: len(part.tokens)] for part in parts]) for leaf, parts in own.items()
                }
                for _ in range(num_without_samples):
                    go(NO_SAMPLES)
            norms |= dict.fromkeys(together, self._norm(gradient))
            own_parts |= held.optimizer.own_parts(together, gradient)
            del gradient
            rows = {leaf: torch.cat([rows[leaf], each], dim=1) if rows else each for leaf, each in found.items()}
        held.progress.stage(own_parts, norms, completes_step=completes_step)
        # Whoever gets past this gather knows that all ranks have staged the update.
        num_columns = 2 + losses.with_entropies + (CRITIC in held.shards.segments)
        columns = list(runner.gather(shards, rows, num_columns).unbind(dim=1))
        return Gradient(
            tokens=tokens_of(shards),
            policy=PolicyOutputs(
                log_probs=columns[0],
                raw_log_probs=columns[1],
                entropies=columns[2] if losses.with_entropies else None,
            ),
            values=columns[-1] if CRITIC in held.shards.segments else None,
            norms=norms,
            padding_share=padding_share(batch, chain.from_iterable(runner.passes(batch, shard) for shard in shards)),
            learning_rates=held.optimizer.learning_rates(),
        )

    def begin_step(self) -> None:
        self.take_back()

    def update(self) -> None:
        self._held().progress.apply()
        self._computing_networks().take_shards()

    def complete_step(self, metrics: Mapping[str, float], carried: Mapping[str, float]) -> None:
        self._held().progress.apply(metrics, carried)
        self._computing_networks().take_shards()
        self._gather_policy_weights()

    def take_back(self) -> None:
        self._held().progress.take_back()
        self._computing_networks().take_shards()

    def weights(self) -> dict[str, Tensor]:
        return checkpoint_weights(self._policy_parameters())

    def save_pretrained(self, folder: Path) -> None:
        self._policy_copy().write(folder)

    def state(self) -> dict[str, Tensor]:
        self._held()
        state = self._held_state()
        names = [tensor.name for tensor in state.saved_tensors()]
        return dict(zip(names, state.gathered(self._group), strict=True))

    def copy_state(self) -> RowsCopy:
        self._held()
        return RowsCopy(self._held_state(), self._policy_copy())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._load(StateInMemory(state))

    def load_files(self, folder: Path) -> None:
        self._load(StateFiles(folder))

    def _load(self, saved: SavedState) -> None:
        state = self._state = self._state or self._new_state(load_weights=False)
        if not state.has_any:
            cut_up_alone(state, self.device)
        self._held()
        state.load(saved)
        if self._networks is not None:
            self._networks.take_shards()
        self._gather_policy_weights()

    def meet(self, membership: Membership) -> None:
        self._next_groups.meet(membership)

    def break_off(self, generation: int) -> None:
        self._next_groups.break_off(generation)

    def resize(self, membership: Membership) -> Traffic:
        self._group.close()
        self._drop_networks()
        self.prepare()
        self._group = self._next_groups.take(membership)
        state = self._state
        assert state is not None
        if self._group.num_ranks == 1 and state.initial is not None:
            return Traffic()  # perhaps others come before anything is computed
        self._policy_weights = None
        traffic = reshard(state, self._group, membership, self.device)
        self._free_memory()
        if not membership.num_leaving:
            self._gather_policy_weights()
        return traffic

    def prepare(self) -> None:
        if self._state is None:
            self._state = self._new_state(load_weights=False)

    def sleep(self, *, offload: bool) -> None:
        held = self._held()
        held.progress.begin()
        self._drop_networks()
        if offload and self.device.type != "cpu":
            held.move(torch.device("cpu"))
        self._free_memory()

    def wake(self) -> None:
        held = self._held()
        if held.shards.vector.device.type != self.device.type:
            held.move(self.device)

    def leave(self) -> None:
        self._group.close()
        self._drop_networks()
        self._next_groups.drop()
        self._group = LocalGroup()
        self._state = self._policy_weights = None
        self._free_memory()

    def disconnect(self) -> None:
        self._group.close()

    def _backward_passes(self, batch: Batch, losses: Losses) -> BackwardPasses:
        runner = self._runner()
        return BackwardPasses(
            self._computing_networks(),
            runner,
            without_tokens_nothing(losses),
            temperature=self._temperature,
            inputs=lambda part: runner.pass_inputs(batch, part),
        )

    def _norm(self, gradient: Tensor) -> float:
        """Of the gradient of which each rank has a part."""
        squares = gradient.square().sum(dtype=torch.float64)[None]
        return float(torch.cat(self._group.all_gather(squares)).sum().sqrt())

    def _runner(self) -> LockstepRunner:
        return LockstepRunner(self._config, self._group, self.device)

    def _held_state(self) -> ShardedState:
        assert self._state is not None, "the trainer has left: resize or load_state brings it back"
        assert self._state.has_any, "built without weights: join a group, or load a state, first"
        return self._state

    def _held(self) -> HeldShards:
        state = self._held_state()
        if state.held is None:
            cut_up_alone(state, self.device)
        return state.shards_held()

    def _computing_networks(self) -> ShardedNetworks:
        if self._networks is None:
            held = self._held()
            if self._group.num_ranks > 1:
                self._mesh = Mesh(self._group, self.device)
            self._networks = ShardedNetworks(self._config, self._held_state().skeletons, held.shards, self._mesh)
        return self._networks

    def _drop_networks(self) -> None:
        if self._networks is not None:
            self._networks = None
            gc.collect()  # modules refer to each other in circles, and keep their parameters until then
        if self._mesh is not None:
            self._mesh.close()
            self._mesh = None

    def _gather_policy_weights(self) -> None:
        self._policy_weights = None
        if self._group.num_ranks > 1:
            read = self._held_state().read
            self._policy_weights = gather_whole_tensors(self._spread_policy(), read, self._group, self.device)

    def _policy_parameters(self) -> dict[str, Tensor]:
        """This rank's: of a rank on its own all of them."""
        if self._group.num_ranks > 1:
            assert self._policy_weights is not None, "no policy is gathered where a rank is about to leave"
            return self._policy_weights
        state = self._held_state()
        tensors = {policy_name(tensor): tensor for tensor in state.layout.of(POLICY)}
        if state.initial is not None:
            return {name: state.initial[tensor.name] for name, tensor in tensors.items()}
        held = state.shards_held()
        return {name: held.shards.rows(tensor) for name, tensor in tensors.items()}

    def _policy_copy(self) -> PolicyCopy:
        state, weights = self._held_state(), self._policy_parameters()
        skeleton = state.skeletons[POLICY]
        if self._group.num_ranks == 1:
            return ModelCopy(skeleton, {name: each.to("cpu", copy=True) for name, each in weights.items()})
        return PolicyFiles(
            skeleton, weights, tensors=self._spread_policy(), rank=self.rank, num_ranks=self._group.num_ranks
        )

    def _spread_policy(self) -> list[SpreadTensor]:
        return self._held_state().layout.spread_policy(self._group.num_ranks)

    def _free_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _new_state(self, *, load_weights: bool) -> ShardedState:
        return ShardedState(
            self._config,
            self._wanted_networks,
            model_path=self._model_path,
            seed=self._seed,
            load_weights=load_weights,
            device=self.device,
        )
