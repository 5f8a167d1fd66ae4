"""The whole state of a rank: networks, optimizer, counters; what of it a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rlserve.trainers.backends.base import CRITIC, POLICY, Networks
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.adapters import add_adapters, freeze, sharing_copy
from rlserve.trainers.backends.pytorch.models import create_critic, load_policy
from rlserve.trainers.backends.pytorch.optimizer import ShardedAdamW, joined
from rlserve.trainers.backends.pytorch.parameters import FlatParameters, Place
from rlserve.trainers.backends.pytorch.progress import StepProgress
from rlserve.trainers.backends.pytorch.saved_state import SavedProgress, SavedState, SavedTensor, check_fits
from rlserve.trainers.backends.pytorch.scorer import load_scorer
from rlserve.trainers.backends.pytorch.shared_trunk import SharedTrunkCritic, TrunkValuer
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import gather_shards
from rlserve.trainers.elastic.holdings import Holdings
from rlserve.trainers.elastic.intervals import Interval, intersection
from rlserve.trainers.elastic.standing import NOTHING

MOMENTS = {"first_moment.": "first", "second_moment.": "second"}
"""Prefix of a moment's name in a saved state, and what ``Moments`` calls it."""


class TrainingState:
    """Policy, optimizer and, where the algorithm needs them, critic and frozen reference.

    A critic that shares the policy's trunk is a value head alone. Parameters are on every rank; AdamW's moments are
    held as ``holdings`` say. With LoRA only adapters, and the head of a critic or of a model that scores, are state:
    every rank has the frozen base from the model's folder, and it is the reference.
    """

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
        lora = config.lora
        copied: Callable[[Any], Any] = sharing_copy if lora.is_on else copy.deepcopy
        self.policy: Any = (
            load_scorer(model_path, load_weights=load_weights or lora.is_on, seed=seed)
            if networks.scores
            else load_policy(model_path, load_weights=load_weights or lora.is_on)
        )
        if lora.is_on:
            freeze(self.policy)
        self.shares_trunk = networks.critic and config.shares_trunk
        critic: Any = None
        if self.shares_trunk:
            critic = SharedTrunkCritic(self.policy.config.hidden_size, seed)
        elif networks.critic:
            critic_path = config.critic_model_path if load_weights else None
            critic = create_critic(self.policy, seed=seed, model_path=critic_path, copied=copied)
        self.critic: Any = critic
        self.valuer: Any = self.policy if networks.scores else critic
        """Whoever says values; None where nobody does."""
        if self.shares_trunk:
            self.valuer = TrunkValuer(self.policy, critic.value_head)
        self.reference: Any = copied(self.policy).to(device) if networks.reference else None
        self.flat_reference: FlatParameters | None = None
        if lora.is_on:
            add_adapters(self.policy, lora, seed)
            if networks.scores:
                self.policy.score.requires_grad_(True)
            if critic is not None and not self.shares_trunk:
                add_adapters(critic.backbone, lora, seed)
        elif self.reference is not None:
            self.flat_reference = FlatParameters({"reference": self.reference}, device)
        trained = {POLICY: self.policy} | ({} if critic is None else {CRITIC: critic})
        self.flat = FlatParameters(trained, device)
        self.optimizer = ShardedAdamW(config, self.flat)
        self.holdings = Holdings(num_elements=self.flat.vector.numel(), num_holders=1)
        self.progress = StepProgress(self.flat, self.optimizer, holds_state=load_weights, carried=networks.carried)
        if load_weights:
            self._hold_everything()

    def networks(self) -> list[nn.Module]:
        """Models of transformers: policy, a critic's own backbone and reference, of those that there are."""
        backbone = None if self.critic is None or self.shares_trunk else self.critic.backbone
        return [network for network in (self.policy, backbone, self.reference) if network is not None]

    @cached_property
    def modules(self) -> list[nn.Module]:
        """All of ``networks``: which they are never changes, and to look for them takes longer than a small pass."""
        return [module for network in self.networks() for module in network.modules()]

    @property
    def trained_together(self) -> list[tuple[str, ...]]:
        """The trained networks, those in one that one pass goes through."""
        return [tuple(self.flat.segments)] if self.shares_trunk else [(network,) for network in self.flat.segments]

    def move(self, device: torch.device) -> None:
        """Copy parameters, reference and moments to another device, and let go of where they were. Moments that are in
        host memory anyhow stay there."""
        self.flat.move(device)
        if self.flat_reference is not None:
            self.flat_reference.move(device)
        self.optimizer.move()

    def gather_parameters(self, group: Group) -> None:
        """After an update: get what other ranks have updated."""
        if self.progress.has_all_parameters:
            return
        gather_shards(group, self.flat.vector, [self.holdings.shard(rank) for rank in range(group.num_ranks)])
        self.progress.has_all_parameters = True

    def saved_tensors(self) -> list[SavedTensor]:
        """What a saved state consists of, in order; the same on any number of ranks."""
        prefixes = dict.fromkeys(("", *MOMENTS), self.flat)
        tensors = [
            SavedTensor(name=f"{prefix}{module}.{name}", shape=place.parameter.shape, dtype=torch.float32)
            for prefix, flat in prefixes.items()
            for module in flat.segments
            for name, place in flat.named_places(module)
        ]
        if self.flat_reference is not None:
            tensors += [
                SavedTensor(name=f"reference.{name}", shape=place.parameter.shape, dtype=torch.float32)
                for name, place in self.flat_reference.named_places("reference")
            ]
        return [*tensors, *SavedProgress.declared(self.progress.carried)]

    def gathered(self, group: Group) -> Iterator[Tensor]:
        """The contents of ``saved_tensors``, in order, one at a time. All ranks go through it together.

        Views of what this rank holds whole, and copies of what says how far training has come.
        """
        for module in self.flat.segments:
            yield from self.flat.views(module, self.flat.vector).values()
        for name in MOMENTS.values():
            for module in self.flat.segments:
                for place in self.flat.places(module):
                    yield self._gathered_moments(group, place, name)
        if self.flat_reference is not None:
            yield from self.flat_reference.views("reference", self.flat_reference.vector).values()
        yield from self.progress.saved().tensors().values()

    def load(self, saved: SavedState) -> None:
        """Take over a saved state: all parameters, and the moments of the shards that this rank holds. Nothing else of
        it is read.

        Raises:
            WeightsRefusedError: names, shapes or types differ from this state's; nothing was changed.
        """
        expected = {tensor.name: tensor for tensor in self.saved_tensors()}
        check_fits(expected, saved.tensors)
        if self.progress.num_steps == NOTHING:
            self._hold_everything()
        for flat in (self.flat, *(() if self.flat_reference is None else (self.flat_reference,))):
            for module in flat.segments:
                for name, place in flat.named_places(module):
                    whole = Interval(0, place.elements.num_elements)
                    flat.vector[place.elements.elements].copy_(saved.read(f"{module}.{name}", whole))
        for module in self.flat.segments:
            for name, place in self.flat.named_places(module):
                for prefix, moment in MOMENTS.items():
                    self._load_moments(place, moment, saved, f"{prefix}{module}.{name}")
        self.progress.restart(SavedProgress.read(saved, self.progress.carried))

    def _hold_everything(self) -> None:
        self.optimizer.hold([self.optimizer.new_moments(Interval(0, self.flat.vector.numel()))])

    def _gathered_moments(self, group: Group, place: Place, name: str) -> Tensor:
        if self.progress.holds_everything:
            return joined(self.optimizer.moments, place.elements, name).view(place.parameter.shape)
        whole = torch.empty(place.elements.num_elements, device=self.flat.vector.device)
        shards = [intersection(place.elements, self.holdings.shard(rank)) for rank in range(group.num_ranks)]
        parts = [Interval(part.first - place.elements.first, part.end - place.elements.first) for part in shards]
        if shards[group.rank].num_elements:
            whole[parts[group.rank].elements] = joined(self.optimizer.moments, shards[group.rank], name)
        gather_shards(group, whole, parts)
        return whole.view(place.parameter.shape)

    def _load_moments(self, place: Place, moment: str, saved: SavedState, name: str) -> None:
        for moments in self.optimizer.moments:
            common = intersection(place.elements, moments.elements)
            if common.num_elements:
                first = place.elements.first
                part = saved.read(name, Interval(common.first - first, common.end - first))
                getattr(moments.part(common), moment).copy_(part)
