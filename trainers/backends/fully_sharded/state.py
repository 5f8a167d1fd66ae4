"""The state of a rank between two groups as within one: its shards, their moments, and how far it has come.

The first rank of a run has read the whole model into host memory; it is cut up only when the group is known. So no
device ever holds more than its part, unless a rank trains on its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.base import CRITIC, POLICY, Networks
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.fully_sharded.layout import REFERENCE, Cut, Layout, ShardedTensor
from rlserve.trainers.backends.fully_sharded.shards import RankShards
from rlserve.trainers.backends.pytorch.models import create_critic, load_policy
from rlserve.trainers.backends.pytorch.optimizer import ShardedAdamW
from rlserve.trainers.backends.pytorch.progress import StepProgress
from rlserve.trainers.backends.pytorch.saved_state import SavedProgress, SavedState, SavedTensor, check_fits
from rlserve.trainers.backends.pytorch.shared_trunk import SharedTrunkCritic
from rlserve.trainers.backends.pytorch.state import MOMENTS
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import gather_shards
from rlserve.trainers.elastic.intervals import Interval


class HeldShards:
    """Rows of all tensors, with their moments."""

    def __init__(
        self, config: TorchTrainerConfig, layout: Layout, cut: Cut, device: torch.device, carried: Mapping[str, float]
    ) -> None:
        """All zeros, after step 0."""
        self.shards = RankShards(layout, cut, device)
        self.optimizer = ShardedAdamW(config, self.shards)
        self.optimizer.hold([self.optimizer.new_moments(Interval(0, self.shards.vector.numel()))])
        self.progress = StepProgress(self.shards, self.optimizer, holds_state=True, carried=carried)

    def move(self, device: torch.device) -> None:
        """To another device."""
        self.shards.move(device)
        self.optimizer.move()

    def rows(self, tensor: ShardedTensor, moment: str | None = None) -> Tensor:
        """[elements] of the rows of a tensor, or of their ``first`` or ``second`` moment. A view."""
        vector = None if moment is None else getattr(self.optimizer.moments[0], moment)
        return self.shards.rows(tensor, vector).view(-1)


class ShardedState:
    """Of one rank: nothing, the whole initial state, or shards of one cut."""

    def __init__(
        self,
        config: TorchTrainerConfig,
        networks: Networks,
        *,
        model_path: str,
        seed: int,
        load_weights: bool,
        device: torch.device,
    ) -> None:
        self._config = config
        self._device = device
        self.initially_carried = networks.carried
        """As ``Backend.carried`` before the first step."""
        policy: Any = load_policy(model_path, load_weights=load_weights)
        parameters: dict[str, dict[str, Tensor]] = {POLICY: _detached(policy)}
        base = _detached(policy.base_model)
        _drop_memory(policy)
        self.skeletons: dict[str, nn.Module] = {POLICY: policy}
        """The networks, without memory for their parameters."""
        if networks.critic and config.shares_trunk:
            self.skeletons[CRITIC] = SharedTrunkCritic(policy.config.hidden_size, seed)
            parameters[CRITIC] = _detached(self.skeletons[CRITIC])
            _drop_memory(self.skeletons[CRITIC])
        elif networks.critic:
            critic_path = config.critic_model_path if load_weights else None
            critic = create_critic(policy, seed=seed, model_path=critic_path)
            parameters[CRITIC] = _detached(critic)
            if critic_path is None:  # its backbone is a copy of the policy's, which has no memory any more
                parameters[CRITIC] |= {f"backbone.{name}": tensor for name, tensor in base.items()}
            _drop_memory(critic)
            self.skeletons[CRITIC] = critic
        if networks.reference:
            parameters[REFERENCE] = parameters[POLICY]
            self.skeletons[REFERENCE] = copy.deepcopy(policy)
        self.layout = Layout(
            {
                network: {name: tensor.shape for name, tensor in of_network.items()}
                for network, of_network in parameters.items()
            }
        )
        self.initial: Mapping[str, Tensor] | None = None
        """All tensors before the first step, where this rank has read them and nothing is cut up yet."""
        if load_weights:
            self.initial = {
                f"{network}.{name}": tensor
                for network, of_network in parameters.items()
                for name, tensor in of_network.items()
            }
        self.held: HeldShards | None = None

    @property
    def has_any(self) -> bool:
        """Whether this rank holds anything."""
        return self.held is not None or self.initial is not None

    @property
    def cut(self) -> Cut | None:
        """What it holds; None for nothing."""
        if self.held is not None:
            return self.held.shards.cut
        return None if self.initial is None else Cut(rank=0, num_ranks=1)

    def new_shards(self, cut: Cut) -> HeldShards:
        """Room for what a rank of a group holds."""
        return HeldShards(self._config, self.layout, cut, self._device, self.initially_carried)

    def hold(self, held: HeldShards) -> None:
        """Replace what is held."""
        self.held, self.initial = held, None

    def read(self, elements: Interval, moment: str | None = None) -> Tensor:
        """Some elements of one tensor that this rank holds, or of a moment; wherever they are."""
        tensor, part = self.layout.at(elements)
        if self.held is None:
            assert self.initial is not None
            assert moment is None, "nothing is trained yet"
            return self.initial[tensor.name].reshape(-1)[part.elements]
        own = tensor.part(self.held.shards.cut)
        return self.held.rows(tensor, moment)[part.first - own.first : part.end - own.first]

    # -- saved states ----------------------------------------------------------------------------------------

    def saved_tensors(self) -> list[SavedTensor]:
        """What a checkpoint holds, in order: the same on any number of ranks, and as of a trainer whose parameters are
        not sharded."""
        found = [SavedTensor(name=each.name, shape=each.shape, dtype=torch.float32) for each in self.layout.trained]
        moments = [
            SavedTensor(name=f"{prefix}{each.name}", shape=each.shape, dtype=torch.float32)
            for prefix in MOMENTS
            for each in found
        ]
        reference = [
            SavedTensor(name=each.name, shape=each.shape, dtype=torch.float32) for each in self.layout.of(REFERENCE)
        ]
        return [*found, *moments, *reference, *SavedProgress.declared(self.initially_carried)]

    def gathered(self, group: Group) -> Iterator[Tensor]:
        """The contents of ``saved_tensors``, in order, one at a time; copies. All ranks go through it together."""
        held = self.shards_held()
        for moment in (None, *MOMENTS.values()):
            for tensor in self.layout.trained:
                yield self.gather(group, tensor, moment)
        for tensor in self.layout.of(REFERENCE):
            yield self.gather(group, tensor)
        yield from held.progress.saved().tensors().values()

    def gather(self, group: Group, tensor: ShardedTensor, moment: str | None = None) -> Tensor:
        """The whole of a tensor, or of its moment, on every rank. All ranks call this together."""
        rows = self.shards_held().rows(tensor, moment)
        whole = torch.empty(tensor.shape, device=self._device)
        parts = [tensor.part(Cut(rank=rank, num_ranks=group.num_ranks)) for rank in range(group.num_ranks)]
        flat = whole.view(-1)
        flat[parts[group.rank].elements] = rows
        if group.num_ranks > 1:
            gather_shards(group, flat, parts)
        return whole

    def load(self, saved: SavedState) -> None:
        """Take this rank's rows from a saved state. Nothing else of it is read.

        Raises:
            WeightsRefusedError: names, shapes or types differ from this state's; nothing was changed.
        """
        check_fits({tensor.name: tensor for tensor in self.saved_tensors()}, saved.tensors)
        held = self.shards_held()
        for moment, prefix in ((None, ""), *((moment, prefix) for prefix, moment in MOMENTS.items())):
            for tensor in self.layout.trained if moment else self.layout.tensors:
                part = tensor.part(held.shards.cut)
                if part.num_elements:
                    held.rows(tensor, moment).copy_(saved.read(f"{prefix}{tensor.name}", part))
        held.progress.restart(SavedProgress.read(saved, self.initially_carried))

    def shards_held(self) -> HeldShards:
        """What is cut up."""
        assert self.held is not None, "this rank holds no shards: join a group, or load a state, first"
        return self.held


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _drop_memory(network: nn.Module) -> None:
    """Leave of a network its modules and buffers, and of its parameters types and shapes; those that are tied stay
    so."""
    empty: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in empty:
                empty[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
            setattr(module, name, empty[id(parameter)])
