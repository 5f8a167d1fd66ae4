"""The whole state of a rank: networks, optimizer, counters; how it is saved, sent and taken back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlserve.errors import WeightsRefusedError
from rlserve.trainers.backends.base import CRITIC, POLICY, Networks
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.models import load_policy, make_critic
from rlserve.trainers.backends.pytorch.optimizer import FlatAdamW
from rlserve.trainers.backends.pytorch.parameters import FlatParameters
from rlserve.trainers.elastic.base import Group

COUNTERS = "counters"
"""Name of the tensor [steps, optimizer updates] in a saved state."""


class TrainingState:
    """Policy, optimizer and, where the algorithm needs them, critic and frozen reference."""

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
        self.policy: Any = load_policy(model_path, load_weights=load_weights)
        self.critic: Any = make_critic(self.policy, seed) if networks.critic else None
        self.reference: Any = None
        self._flat_reference: FlatParameters | None = None
        if networks.reference:
            self.reference = copy.deepcopy(self.policy)
            self._flat_reference = FlatParameters({"reference": self.reference}, device)
        trained = {POLICY: self.policy} | ({CRITIC: self.critic} if networks.critic else {})
        self.flat = FlatParameters(trained, device)
        self.optimizer = FlatAdamW(config, self.flat)
        self.num_steps = 0
        self._snapshot: tuple[list[Tensor], tuple[int, int]] | None = None

    def remember(self) -> None:
        """Remember the present in host memory, to come back to with ``rollback``."""
        self.forget()
        changing = self._changing_vectors()
        copies = [torch.empty_like(vector, device="cpu", pin_memory=vector.is_cuda) for vector in changing]
        for kept, vector in zip(copies, changing, strict=True):
            kept.copy_(vector)
        self._snapshot = copies, (self.num_steps, self.optimizer.num_updates)

    def forget(self) -> None:
        """Free what was remembered: the present is what ``rollback`` comes back to, as long as nothing changes it."""
        self._snapshot = None

    def rollback(self) -> None:
        """Return to the last ``remember``; do nothing if there was none since the last rollback or ``forget``."""
        if self._snapshot is None:
            return
        copies, (self.num_steps, self.optimizer.num_updates) = self._snapshot
        for kept, vector in zip(copies, self._changing_vectors(), strict=True):
            vector.copy_(kept)
        self._snapshot = None

    def broadcast(self, group: Group) -> None:
        """Overwrite everything with rank 0's state, bit for bit."""
        counters = torch.tensor([self.num_steps, self.optimizer.num_updates], device=self.flat.vector.device)
        group.broadcast(counters)
        self.num_steps, self.optimizer.num_updates = counters.tolist()
        for vector in self._changing_vectors():
            group.broadcast(vector)
        if self._flat_reference is not None:
            group.broadcast(self._flat_reference.vector)
        self._snapshot = None

    def named_tensors(self) -> dict[str, Tensor]:
        """Views of every part under a name of its own, such as ``policy.lm_head.weight`` or
        ``first_moment.critic.value_head.bias``. A copy of the counters."""
        vectors = {"": self.flat.vector, "first_moment.": self.optimizer.first_moment}
        vectors["second_moment."] = self.optimizer.second_moment
        tensors = {
            f"{prefix}{module}.{name}": view
            for prefix, vector in vectors.items()
            for module in self.flat.segments
            for name, view in self.flat.views(module, vector).items()
        }
        if self._flat_reference is not None:
            reference = self._flat_reference.views("reference", self._flat_reference.vector)
            tensors |= {f"reference.{name}": view for name, view in reference.items()}
        tensors[COUNTERS] = torch.tensor([self.num_steps, self.optimizer.num_updates])
        return tensors

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over the contents of ``named_tensors``.

        Raises:
            WeightsRefusedError: names, shapes or types differ from this state's; nothing was changed.
        """
        own = self.named_tensors()
        if odd := sorted(own.keys() ^ saved.keys()):
            where = "lacks" if odd[0] in own else "has the unknown"
            raise WeightsRefusedError(f"saved trainer state {where} tensor {odd[0]!r} ({len(odd)} such names)")
        for name, tensor in own.items():
            if (tensor.shape, tensor.dtype) != (saved[name].shape, saved[name].dtype):
                raise WeightsRefusedError(
                    f"saved trainer state does not fit: {name!r} is {saved[name].dtype} {tuple(saved[name].shape)}, "
                    f"this trainer's is {tensor.dtype} {tuple(tensor.shape)}"
                )
        for name, tensor in own.items():
            tensor.copy_(saved[name])
        self.num_steps, self.optimizer.num_updates = saved[COUNTERS].tolist()
        self._snapshot = None

    def _changing_vectors(self) -> list[Tensor]:
        return [self.flat.vector, self.optimizer.first_moment, self.optimizer.second_moment]
