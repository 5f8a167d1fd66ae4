"""Policy, critic and reference as ``fully_shard`` computes them: each layer's parameters whole while it is computed.

::

    embedding, last norm, head    whole from the forward pass to the end of the backward pass of this network
    layer 0                       whole while it goes forward, and again while it goes backward
    layer 1                       …

The head is computed apart from the rest, some rows at a time (``pytorch.head``). It finds its weights whole, since they
belong to the root, and what goes backward there is added to the root's gradient. So it is with the value head of a
critic that shares the policy's trunk: the two are one root.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from rlserve.trainers.backends.base import CRITIC, POLICY
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.fully_sharded.layout import REFERENCE, ShardedTensor
from rlserve.trainers.backends.fully_sharded.mesh import Mesh
from rlserve.trainers.backends.fully_sharded.shards import RankShards
from rlserve.trainers.backends.pytorch.recomputed_layers import recompute_layers
from rlserve.trainers.backends.pytorch.shared_trunk import SharedTrunkCritic, TrunkValuer


class ShardedPolicy(nn.Module):
    """A policy or reference: what is called as its base goes through the root of ``fully_shard``."""

    def __init__(self, model: Any, critic: SharedTrunkCritic | None = None) -> None:
        """``critic`` is one on the same trunk."""
        super().__init__()
        self.model = model
        self.critic = critic

    @property
    def base_model(self) -> ShardedPolicy:
        """Gives the last hidden states."""
        return self

    @property
    def config(self) -> Any:
        """Of the model."""
        return self.model.config

    def get_output_embeddings(self) -> Any:
        """The head, whose weights are whole after a forward pass, until :func:`reshard`."""
        return self.model.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        """As the model without its head."""
        return self.model.base_model(**inputs)


class ShardedCritic(nn.Module):
    """A critic, likewise."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def backbone(self) -> ShardedCritic:
        """Gives the last hidden states."""
        return self

    @property
    def value_head(self) -> Any:
        """As the head of a policy."""
        return self.model.value_head

    def forward(self, **inputs: Any) -> Any:
        """As the backbone."""
        return self.model.backbone(**inputs)


class ShardedNetworks:
    """The networks of one rank in one group; their parameters are views of its shards."""

    policy: Any
    critic: Any
    reference: Any

    def __init__(
        self, config: TorchTrainerConfig, skeletons: dict[str, nn.Module], shards: RankShards, mesh: Mesh | None
    ) -> None:
        """``skeletons`` by network, without memory, which stay as they are; ``mesh`` is None for a rank on its own."""
        self._shards = shards
        self._mesh = mesh
        self._parameters: dict[str, nn.Parameter] = {}
        self._roots: dict[str, nn.Module] = {}
        critic = skeletons.get(CRITIC)
        self.shares_trunk = isinstance(critic, SharedTrunkCritic)
        for network, skeleton in skeletons.items():
            if network == CRITIC and self.shares_trunk:
                continue
            model: Any = copy.deepcopy(skeleton)
            backbone = model.backbone if network == CRITIC else model.base_model
            if config.activation_checkpointing:
                recompute_layers(backbone)
            root = ShardedCritic(model) if network == CRITIC else ShardedPolicy(model)
            of_root = [network]
            if network == POLICY and isinstance(critic, SharedTrunkCritic):
                root = ShardedPolicy(model, copy.deepcopy(critic))
                of_root = [POLICY, CRITIC]
            if mesh is not None:
                _shard(root, list(backbone.layers), mesh, config)
            self._roots |= dict.fromkeys(of_root, root)
            self._give_memory(of_root, root)
        self.policy, self.critic, self.reference = map(self._roots.get, (POLICY, CRITIC, REFERENCE))
        self.valuer: Any = TrunkValuer(self.policy, self.policy.critic.value_head) if self.shares_trunk else self.critic

    @property
    def trained_together(self) -> list[tuple[str, ...]]:
        """The trained networks, those in one that one pass goes through."""
        trained = tuple(self._shards.segments)
        return [trained] if self.shares_trunk else [(network,) for network in trained]

    @contextmanager
    def collecting_gradients(self, networks: Sequence[str]) -> Iterator[Tensor]:
        """A vector of this rank's part of the networks' segment, to which ``backward`` adds inside the context: the sum
        over all ranks."""
        segments = self._shards.segments
        segment = slice(segments[networks[0]].start, segments[networks[-1]].stop)
        gradient = torch.zeros_like(self._shards.vector[segment])
        tensors = [tensor for network in networks for tensor in self._shards.layout.of(network)]
        parameters = [(tensor, self._parameters[tensor.name]) for tensor in tensors]
        for tensor, parameter in parameters:
            rows = self._shards.rows(tensor, gradient, offset=segment.start)
            parameter.grad = rows if self._mesh is None else self._mesh.sharded(rows, tensor.shape)
        try:
            yield gradient
        finally:
            for _, parameter in parameters:
                parameter.grad = None

    def reshard(self, network: str) -> None:
        """Let go of what of a network is whole after forward passes without a backward pass."""
        root: Any = self._roots[network]
        if self._mesh is not None:
            root.reshard()

    def take_shards(self) -> None:
        """After the shards have changed: ``fully_shard`` keeps copies of those that it fills up to equal lengths."""
        for tensor in self._shards.layout.trained:
            parameter: Any = self._parameters[tensor.name]
            rows = self._shards.rows(tensor)
            local = parameter.data if self._mesh is None else parameter.to_local()
            if local.data_ptr() != rows.data_ptr():
                local.detach().copy_(rows)

    def _give_memory(self, networks: Sequence[str], root: nn.Module) -> None:
        tensors = iter([tensor for network in networks for tensor in self._shards.layout.of(network)])
        made: dict[int, nn.Parameter] = {}
        state: dict[str, nn.Parameter] = {}
        for name, parameter in root.named_parameters(remove_duplicate=False):
            if id(parameter) not in made:
                tensor = next(tensors)
                made[id(parameter)] = self._parameter(tensor, is_trained=tensor.network != REFERENCE)
                self._parameters[tensor.name] = made[id(parameter)]
            state[name] = made[id(parameter)]
        root.load_state_dict(state, strict=False, assign=True)
        if self._mesh is None:  # otherwise fully_shard has moved the buffers
            root.to(self._shards.vector.device)

    def _parameter(self, tensor: ShardedTensor, *, is_trained: bool) -> nn.Parameter:
        rows = self._shards.rows(tensor)
        whole = rows if self._mesh is None else self._mesh.sharded(rows, tensor.shape)
        return nn.Parameter(whole, requires_grad=is_trained)


def _shard(root: nn.Module, layers: list[nn.Module], mesh: Mesh, config: TorchTrainerConfig) -> None:
    policy = MixedPrecisionPolicy()
    if config.dtype == "bfloat16":  # what autocast rounds in each pass is rounded before it is gathered
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    modules: list[Any] = [*(fully_shard(layer, mesh=mesh.devices, mp_policy=policy) for layer in layers)]
    modules.append(fully_shard(root, mesh=mesh.devices))
    for module in modules:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_custom_all_gather(mesh.all_gather)
        module.set_custom_reduce_scatter(mesh.reduce_scatter)
