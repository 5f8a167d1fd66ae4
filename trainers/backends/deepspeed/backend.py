"""One rank on DeepSpeed.

    held state ──► engines ──► held state            in host memory, apart from any group; in DeepSpeed, of one group
       ▲  │          │  compute_gradient: as many passes on every rank ──► summed, cut up ──► norms
       │  │          │  update: clip ──► AdamW on what this rank has ──► parameters spread
    resize: what changes its place is sent        take_back: to what was held before the step

DeepSpeed's engines are of one group, so they are made anew for the next, from what the ranks hold. Each element of what
ZeRO cuts up is on one rank alone: a rank that is lost takes it along, in mid-step and between two. Only stage 0, which
cuts up nothing, goes on without.

Legend: a response tokens of a pass or a mini-batch, C columns.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.backends.base import (
    POLICY,
    Backend,
    Gradient,
    Losses,
    Networks,
    Scores,
    Wanted,
)
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig
from rlserve.trainers.backends.deepspeed.held_state import PARAMETERS, HeldState, Pieces, Progress
from rlserve.trainers.backends.deepspeed.importing import import_deepspeed
from rlserve.trainers.backends.deepspeed.layout import REFERENCE, ParameterLayout
from rlserve.trainers.backends.deepspeed.live_engines import LiveEngines
from rlserve.trainers.backends.deepspeed.networks import create_networks, skeleton_of
from rlserve.trainers.backends.deepspeed.resharding import reshard
from rlserve.trainers.backends.deepspeed.state import ShardCopy, gathered_state, load_held
from rlserve.trainers.backends.deepspeed.world import World
from rlserve.trainers.backends.learning_rates import learning_rates
from rlserve.trainers.backends.pytorch.adapters import adapter_weights
from rlserve.trainers.backends.pytorch.models import checkpoint_weights
from rlserve.trainers.backends.pytorch.saved_state import SavedState, StateInMemory
from rlserve.trainers.backends.pytorch.state_copy import AdaptersCopy, ModelCopy, PolicyCopy
from rlserve.trainers.backends.pytorch.state_files import StateFiles
from rlserve.trainers.backends.spread.policy_files import PolicyFiles
from rlserve.trainers.base import Membership, Traffic
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.next_groups import NextGroups


class DeepSpeedBackend(Backend):
    """See ``Backend`` for the contract and ``create_trainer`` for the arguments."""

    def __init__(
        self,
        config: DeepSpeedTrainerConfig,
        networks: Networks,
        *,
        model_path: str,
        seed: int,
        temperature: float,
        device: torch.device,
        load_weights: bool,
    ) -> None:
        assert temperature > 0
        import_deepspeed(device.type)
        self.device = device
        self.max_tokens_per_pass = config.ppo_max_token_len_per_gpu
        self._config = config
        self._wanted_networks = networks
        self._model_path = model_path
        self._seed = seed
        self._temperature = temperature
        self._group: Group = LocalGroup()
        self._next_groups = NextGroups(timeout_s=config.timeout_s, device=device)
        self._world: World | None = None
        self._networks: dict[str, Any] | None = self._new_networks(load_weights=load_weights)
        with_lora = config.lora.is_on  # the reference is the frozen base then
        self._layout = ParameterLayout(
            {name: network for name, network in self._networks.items() if not (with_lora and name == REFERENCE)},
            config,
        )
        self._skeleton = skeleton_of(self._networks[POLICY])
        self._progress = Progress(carried=networks.carried)
        self._held: HeldState | None = self._loaded(self._networks) if load_weights else None
        """The state, while no engine has it."""
        self._live: LiveEngines | None = None
        self._before: HeldState | None = None
        """What this rank had before the first update of a step of several."""
        self._is_updating = False
        """An update is under way: what this rank has is neither the old nor the new."""
        self._has_gradient = False
        """There is one that was not applied."""
        self._is_together = False
        """This rank is where others may keep it waiting, as far as one can tell from outside of DeepSpeed."""
        self._sleeping_policy: dict[str, Tensor] | None = None
        """Its parameters, from ``sleep`` until the engines are there again."""

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def waits_for_others(self) -> bool:
        return self._group.is_waiting or self._is_together

    @property
    def num_steps(self) -> int:
        self._check_holds_state()
        return self._progress.num_steps

    @property
    def last_metrics(self) -> dict[str, float]:
        return dict(self._progress.metrics)

    @property
    def carried(self) -> Mapping[str, float]:
        return self._progress.carried

    def score(self, batch: Batch, wanted: Wanted, *, alone: bool = False) -> Scores:
        if alone and self._group.num_ranks > 1:
            return self._engines().score_alone(batch, wanted)
        with self._together("scoring") as live:
            return live.score(batch, wanted)

    def begin_step(self) -> None:
        if self._before is not None or self._has_gradient:  # of a step that was broken off
            self.take_back()

    def compute_gradient(
        self, batch: Batch, samples: NDArray[np.int64], losses: Losses, *, completes_step: bool
    ) -> Gradient:
        with self._together("computing the gradient") as live:
            self._has_gradient = True
            return live.compute_gradient(batch, samples, losses, self._learning_rates())

    def update(self) -> None:
        if self._before is None:
            self._before = HeldState(progress=self._progress, vectors=self._engines().read())
        self._apply()

    def complete_step(self, metrics: Mapping[str, float], carried: Mapping[str, float]) -> None:
        self._apply()
        self._progress = self._progress.after_step(metrics, carried)
        self._before = None
        with self._together("collecting the policy's tensors") as live:
            live.complete_step()

    def take_back(self) -> None:
        held = self._take_held()
        assert held is not None, "an update was broken off: the state is lost"
        self._hold(held)
        self._engines()

    def weights(self) -> dict[str, Tensor]:
        parameters = self._policy_parameters()
        return adapter_weights(parameters) if self._config.lora.is_on else checkpoint_weights(parameters)

    def save_pretrained(self, folder: Path) -> None:
        if self._writes_policy:
            self._copy_policy().write(folder)

    def state(self) -> dict[str, Tensor]:
        return gathered_state(self._read(), self._layout, self._group, self._config.zero_stage, self.device)

    def copy_state(self) -> ShardCopy:
        policy = self._copy_policy() if self._writes_policy else None
        return ShardCopy(self._read(), self._layout, self._group, self._config.zero_stage, policy)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._load(StateInMemory(state))

    def load_files(self, folder: Path) -> None:
        self._load(StateFiles(folder))

    def meet(self, membership: Membership) -> None:
        self._next_groups.meet(membership)

    def break_off(self, generation: int) -> None:
        self._next_groups.break_off(generation)

    def resize(self, membership: Membership) -> Traffic:
        self._retreat()
        self._group = self._next_groups.take(membership)
        new, traffic = reshard(
            self._held, self._layout, self._group, membership, zero_stage=self._config.zero_stage, device=self.device
        )
        self._hold(new)
        if not membership.num_leaving:  # otherwise those who stay form the next group at once
            self._engines()
        return traffic

    def prepare(self) -> None:
        if self._networks is None:
            self._networks = self._new_networks(load_weights=False)

    def sleep(self, *, offload: bool) -> None:
        if offload and self.device.type != "cpu":
            policy = {name: tensor.to("cpu", copy=True) for name, tensor in self._policy_parameters().items()}
            held = self._take_held()
            assert held is not None
            self._hold(held)
            self._sleeping_policy = policy
            self._networks = None
        self._free_memory()

    def wake(self) -> None:
        """The engines come back with what all ranks do together next."""

    def leave(self) -> None:
        self._drop_engines()
        self._close_group()
        self._next_groups.drop()
        self._group = LocalGroup()
        self._networks = self._held = self._before = self._sleeping_policy = None
        self._free_memory()

    def disconnect(self) -> None:
        error = sys.exception()
        if error is not None:
            _let_go(error)
        self._retreat()

    # -- between engines and what is held ----------------------------------------------------------------------

    def _engines(self) -> LiveEngines:
        """Made now, by all ranks together, if they are not there."""
        if self._live is not None:
            return self._live
        self._check_holds_state()
        assert self._held is not None
        networks = self._networks if self._networks is not None else self._new_networks(load_weights=False)
        self._networks = None
        with self._naming_failures("setting DeepSpeed up"):
            if self._world is None:
                self._world = World(self._group)
                self._world.open(timeout_s=self._config.timeout_s, device=self.device)
            live = LiveEngines(
                self._config,
                networks,
                self._layout,
                self._group,
                temperature=self._temperature,
                device=self.device,
            )
            self._live = live
            live.write(self._held)
        self._held = self._sleeping_policy = None
        return live

    @contextmanager
    def _together(self, operation: str) -> Iterator[LiveEngines]:
        live = self._engines()
        with self._naming_failures(operation):
            yield live

    @contextmanager
    def _naming_failures(self, operation: str) -> Iterator[None]:
        """All ranks do this together.

        Raises:
            WorkerFailedError: a rank failed or did not answer.
        """
        self._is_together = self._group.num_ranks > 1
        try:
            yield
        except RuntimeError as error:
            _let_go(error)
            world = self._world
            assert world is not None
            self._retreat()
            raise world.failure(operation, error) from error
        finally:
            self._is_together = False

    def _retreat(self) -> None:
        """From a group that is broken, with what this rank has: engines and connections are closed."""
        held = self._take_held()
        if held is not None:
            self._hold(held)
        self._close_group()

    def _read(self) -> HeldState:
        """Copies, in host memory, of what this rank has between two steps."""
        self._check_holds_state()
        if self._held is not None:
            return self._held
        return HeldState(progress=self._progress, vectors=self._engines().read())

    def _take_held(self) -> HeldState | None:
        """What this rank has of the last step boundary; None where it has nothing. Its engines are gone then."""
        if self._live is None or self._held is not None:  # or they are not complete
            self._drop_engines()
            return self._held
        held = self._before
        if held is None and not self._is_updating:
            held = self._read()
        self._drop_engines()
        return held

    def _hold(self, held: HeldState) -> None:
        self._held, self._progress = held, held.progress

    def _drop_engines(self) -> None:
        if self._live is not None:
            self._live.destroy()
            self._live = None
        self._before, self._is_updating, self._has_gradient = None, False, False
        gc.collect()  # modules and engines refer to each other in circles

    def _close_group(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None
        self._group.close()

    def _apply(self) -> None:
        rates = self._learning_rates()
        with self._together("updating") as live:
            self._is_updating = True
            live.step(rates)
            self._is_updating = self._has_gradient = False
        self._progress = replace(self._progress, num_updates=self._progress.num_updates + 1)

    def _learning_rates(self) -> dict[str, float]:
        """Those of the next update."""
        return learning_rates(self._config, self._layout.trained, self._progress.num_updates)

    def _load(self, saved: SavedState) -> None:
        held = load_held(saved, self._layout, self._group, self._config.zero_stage, self._progress.carried)
        self._drop_engines()
        self._hold(held)
        self._engines()

    def _policy_parameters(self) -> dict[str, Tensor]:
        if self._sleeping_policy is not None:
            return self._sleeping_policy
        return self._engines().policy_parameters()

    @property
    def _writes_policy(self) -> bool:
        return self.rank == 0 or self._config.weights_are_spread

    def _copy_policy(self) -> PolicyCopy:
        if self._config.weights_are_spread and self._group.num_ranks > 1:
            return PolicyFiles(
                self._skeleton,
                self._policy_parameters(),
                tensors=self._layout.spread_policy(self._group.num_ranks),
                rank=self.rank,
                num_ranks=self._group.num_ranks,
            )
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in self._policy_parameters().items()}
        if self._config.lora.is_on:
            return AdaptersCopy(adapter_weights(weights), self._config.lora, self._model_path)
        return ModelCopy(self._skeleton, weights)

    def _check_holds_state(self) -> None:
        assert self._live is not None or self._held is not None, "without state: join a group, or load one, first"

    def _new_networks(self, *, load_weights: bool) -> dict[str, Any]:
        return create_networks(
            self._config, self._wanted_networks, model_path=self._model_path, seed=self._seed, load_weights=load_weights
        )

    def _loaded(self, networks: Mapping[str, Any]) -> HeldState:
        """The initial state, as views of the networks' parameters."""
        parameters = {name: dict(network.named_parameters()) for name, network in networks.items()}
        pieces = [
            (place.elements, parameters[network][name].detach().flatten())
            for network, places in self._layout.places.items()
            for name, place in places.items()
        ]
        return HeldState(progress=Progress(carried=self._wanted_networks.carried), vectors={PARAMETERS: Pieces(pieces)})

    def _free_memory(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def _let_go(error: BaseException) -> None:
    """Of what the frames hold that an error came through: engines, and with them a group's connections."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
