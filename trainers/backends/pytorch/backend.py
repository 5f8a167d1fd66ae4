"""One rank in plain PyTorch: its networks, its state and its place in a group.

    compute_gradient:  | gradient of own shards | ──► sum in the fixed tree ──► norms
    update:            clip ──► AdamW

What a logical shard computes depends on the shard alone, and what is added up is added in an order that depends
on the shards alone. So the result does not depend, to the bit, on which rank computed what, as long as all ranks
compute a shard alike: the same kind of processor, and on CPU the same number of threads.

Legend: a response tokens of a pass, a shard or a mini-batch, C columns, N elements of the flat parameter vector.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.errors import WorkerFailedError
from rlserve.trainers.backends.base import Backend, Gradient, Losses, Networks, PolicyOutputs, Scores, Wanted
from rlserve.trainers.backends.config import TorchTrainerConfig
from rlserve.trainers.backends.pytorch.models import checkpoint_weights, policy_backward, response_values
from rlserve.trainers.backends.pytorch.native_policy import NativePolicy
from rlserve.trainers.backends.pytorch.native_shape import check_supported
from rlserve.trainers.backends.pytorch.runner import ShardRunner, tokens_of
from rlserve.trainers.backends.pytorch.scoring import score_batch
from rlserve.trainers.backends.pytorch.shards import LogicalShard
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.base import Membership
from rlserve.trainers.batch import Batch
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.distributed import join_group
from rlserve.trainers.elastic.reduction import sum_over_leaves


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
        self._state: TrainingState | None = self._new_state(load_weights=load_weights)
        self._holds_weights = load_weights
        self._pending: tuple[Tensor, Mapping[str, float]] | None = None
        """The gradient that is not applied yet, [N], and its norms."""

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def num_steps(self) -> int:
        return self._held_state().num_steps

    def score(self, batch: Batch, wanted: Wanted) -> Scores:
        return score_batch(self._held_state(), self._runner(), batch, wanted, temperature=self._temperature)

    def compute_gradient(self, batch: Batch, samples: NDArray[np.int64], losses: Losses) -> Gradient:
        state, runner = self._held_state(), self._runner()
        shards = runner.cut(batch, samples)
        native = runner.native_policy(state.policy, batch)
        rows_of_shard: dict[int, Tensor] = {}

        def shard_gradient(leaf: int) -> Tensor:
            gradient = torch.zeros_like(state.flat.vector)
            state.flat.collect_gradients_in(gradient)
            rows_of_shard[leaf] = torch.cat(
                [self._backward(batch, part, losses, native) for part in runner.passes(batch, shards[leaf])]
            )
            state.flat.drop_gradients()
            return gradient

        gradient = sum_over_leaves(
            runner.group, len(shards), shard_gradient, num_elements=state.flat.vector.numel(), device=self.device
        )
        num_columns = 2 + (losses.value is not None) + losses.with_entropies
        columns = list(runner.gather(shards, rows_of_shard, num_columns).unbind(dim=1))
        norms = state.optimizer.gradient_norms(gradient)
        self._pending = gradient, norms
        return Gradient(
            tokens=tokens_of(shards),
            policy=PolicyOutputs(
                log_probs=columns[0],
                raw_log_probs=columns[1],
                entropies=columns[-1] if losses.with_entropies else None,
            ),
            values=None if losses.value is None else columns[2],
            norms=norms,
            learning_rates=state.optimizer.learning_rates(),
        )

    def update(self) -> None:
        assert self._pending is not None, "compute a gradient first"
        (gradient, norms), self._pending = self._pending, None
        self._held_state().optimizer.update(gradient, norms)

    def complete_step(self) -> None:
        self._held_state().num_steps += 1

    def remember(self) -> None:
        self._held_state().remember()

    def forget(self) -> None:
        self._held_state().forget()

    def rollback(self) -> None:
        self._pending = None
        if self._state is not None:
            self._state.rollback()

    def weights(self) -> dict[str, Tensor]:
        return checkpoint_weights(self._policy_parameters())

    def save_pretrained(self, folder: Path) -> None:
        # Copies, because safetensors refuses tensors that share one storage, as views of the flat vector do.
        weights = {name: view.to("cpu", copy=True) for name, view in self._policy_parameters().items()}
        self._held_state().policy.save_pretrained(folder, state_dict=weights)

    def state(self) -> dict[str, Tensor]:
        return self._held_state().named_tensors()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self._state is None:
            self._state = self._new_state(load_weights=False)
        self._state.load(state)
        self._holds_weights = True

    def resize(self, membership: Membership) -> None:
        assert membership.rank != 0 or self._holds_weights, "rank 0 must hold the state that the others receive"
        self._group.close()
        if self._state is None:
            self._state = self._new_state(load_weights=False)
        self._group = join_group(membership, timeout_s=self._config.timeout_s, device=self.device)
        self._state.remember()
        try:
            self._state.broadcast(self._group)
        except WorkerFailedError:
            # A state of which only a part arrived is worth nothing; what this rank held before may be.
            self._state.rollback()
            raise
        self._holds_weights = True

    def leave(self) -> None:
        self._group.close()
        self._group = LocalGroup()
        self._state = None
        self._pending = None
        self._holds_weights = False
        if self.device.type == "cuda":
            gc.collect()  # modules refer to each other in circles, and keep their parameters until then
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def disconnect(self) -> None:
        self._group.close()

    def _backward(self, batch: Batch, part: LogicalShard, losses: Losses, native: NativePolicy | None) -> Tensor:
        """Add the gradient of one pass's part of the loss; return what the networks said about its tokens, [a, C]:
        log-probabilities, raw ones, values and entropies, the last two where there are any."""
        state, runner = self._held_state(), self._runner()
        inputs, tokens = runner.inputs(batch, part), torch.from_numpy(part.tokens).to(self.device)
        # One network after the other, so that the activations of only one are alive.
        outputs = policy_backward(
            state.policy,
            inputs,
            lambda rows, outputs: losses.policy(tokens[rows], outputs),
            temperature=self._temperature,
            with_entropy=losses.with_entropies,
            autocast=runner.autocast,
            native=native,
        )
        columns = [outputs.log_probs, outputs.raw_log_probs]
        if losses.value is not None:
            with runner.autocast():
                values = response_values(state.critic, inputs)
            losses.value(tokens, values).backward()  # type: ignore[no-untyped-call]
            columns.append(values.detach())
        if outputs.entropies is not None:
            columns.append(outputs.entropies)
        return torch.stack(columns, dim=1)

    def _held_state(self) -> TrainingState:
        assert self._state is not None, "the trainer has left: resize or load_state brings it back"
        assert self._holds_weights, "built without weights: join a group, or load a state, first"
        return self._state

    def _policy_parameters(self) -> dict[str, Tensor]:
        flat = self._held_state().flat
        return flat.views("policy", flat.vector)

    def _runner(self) -> ShardRunner:
        return ShardRunner(self._config, self._group, self.device)

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
        return state
