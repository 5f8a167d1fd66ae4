"""One rank of a PPO trainer: its life in groups. What a step computes is in ``step``."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.errors import NonFiniteLossError, UserError, WorkerFailedError
from rlserve.trainers.backends.pytorch.models import checkpoint_weights, policy_log_probs, response_values
from rlserve.trainers.backends.pytorch.native_shape import check_supported
from rlserve.trainers.backends.pytorch.runner import ShardRunner
from rlserve.trainers.backends.pytorch.shards import ShardInputs
from rlserve.trainers.backends.pytorch.state import TrainingState
from rlserve.trainers.base import Membership, Trainer
from rlserve.trainers.batch import Batch
from rlserve.trainers.config import AlgorithmConfig, TrainerConfig
from rlserve.trainers.elastic.base import Group, LocalGroup
from rlserve.trainers.elastic.distributed import join_group
from rlserve.trainers.step import PPOStep

logger = logging.getLogger(__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory: on a GPU it has an error for that, on a CPU only a message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


class PPOTrainer(Trainer):
    """See ``Trainer`` for the contract and ``create_trainer`` for the arguments."""

    def __init__(
        self,
        config: TrainerConfig,
        algorithm: AlgorithmConfig,
        *,
        model_path: str,
        seed: int,
        temperature: float,
        device: torch.device,
        load_weights: bool,
    ) -> None:
        assert temperature > 0
        self._config = config
        self._algorithm = algorithm
        self._model_path = model_path
        self._seed = seed
        self._temperature = temperature
        self._device = device
        self._group: Group = LocalGroup()
        self._state: TrainingState | None = self._new_state(load_weights=load_weights)
        self._holds_weights = load_weights

    @property
    def num_steps(self) -> int:
        return self._held_state().num_steps

    def step(self, batch: Batch) -> dict[str, float]:
        state = self._held_state()
        state.forget()
        batch, num_left_out = self._finite_part(batch)
        try:
            step = PPOStep(
                self._algorithm, state, self._runner(), batch=batch, seed=self._seed, temperature=self._temperature
            )
            metrics = step.run()
        except NonFiniteLossError:
            state.rollback()
            raise
        except Exception as error:
            # The other ranks wait for this one: let them fail now, not at their deadline.
            self._group.close()
            if is_out_of_memory(error):
                raise UserError(self._memory_advice(str(error).splitlines()[0])) from error
            raise
        state.num_steps += 1
        return {**metrics, "training/num_nonfinite_samples": float(num_left_out)}

    def rollback(self) -> None:
        if self._state is not None:
            self._state.rollback()

    def weights(self) -> dict[str, Tensor]:
        return checkpoint_weights(self._policy_parameters())

    def save_pretrained(self, folder: Path) -> None:
        # Copies, because safetensors refuses tensors that share one storage, as views of the flat vector do.
        weights = {name: view.to("cpu", copy=True) for name, view in self._policy_parameters().items()}
        self._held_state().policy.save_pretrained(folder, state_dict=weights)

    def resize(self, membership: Membership) -> None:
        assert membership.rank != 0 or self._holds_weights, "rank 0 must hold the state that the others receive"
        self._group.close()
        if self._state is None:
            self._state = self._new_state(load_weights=False)
        self._group = join_group(membership, timeout_s=self._config.timeout_s, device=self._device)
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
        self._holds_weights = False
        if self._device.type == "cuda":
            gc.collect()  # modules refer to each other in circles, and keep their parameters until then
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    def state(self) -> dict[str, Tensor]:
        return self._held_state().named_tensors()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self._state is None:
            self._state = self._new_state(load_weights=False)
        self._state.load(state)
        self._holds_weights = True

    def log_probs(self, batch: Batch) -> NDArray[np.float32]:
        policy, runner = self._held_state().policy, self._runner()
        native = runner.native_policy(policy, batch)

        def raw_log_probs(inputs: ShardInputs) -> list[Tensor]:
            return [policy_log_probs(policy, inputs, temperature=1.0, native=native)[1]]

        return runner.score(batch, raw_log_probs, num_columns=1)[0]

    def values(self, batch: Batch) -> NDArray[np.float32]:
        critic = self._held_state().critic
        return self._runner().score(batch, lambda inputs: [response_values(critic, inputs)], num_columns=1)[0]

    def _held_state(self) -> TrainingState:
        assert self._state is not None, "the trainer has left: resize or load_state brings it back"
        assert self._holds_weights, "built without weights: join a group, or load a state, first"
        return self._state

    def _policy_parameters(self) -> dict[str, Tensor]:
        flat = self._held_state().flat
        return flat.views("policy", flat.vector)

    def _finite_part(self, batch: Batch) -> tuple[Batch, int]:
        """The samples whose numbers are all finite, and how many others there are: a NaN spreads to all weights."""
        is_finite = batch.is_finite()
        if is_finite.all():
            return batch, 0
        odd = [sample_id for sample_id, finite in zip(batch.sample_ids, is_finite, strict=True) if not finite]
        found = f"step {self.num_steps + 1}: log-probabilities or rewards that are not finite in {len(odd)} of "
        found += f"{batch.num_samples} samples, such as {odd[0]}"
        if not is_finite.any():
            raise NonFiniteLossError(f"{found}; nothing was applied")
        if self._group.rank == 0:
            logger.warning("%s; they are left out", found)
        return batch.select(np.flatnonzero(is_finite)), len(odd)

    def _memory_advice(self, found: str) -> str:
        limit = self._config.ppo_max_token_len_per_gpu
        return (
            f"the trainer ran out of memory in step {self.num_steps + 1} ({found}); lower "
            f"trainer.ppo_max_token_len_per_gpu, the tokens that are computed at once (now {limit}), or, if one sample "
            f"is too long, rollout.max_tokens"
        )

    def _runner(self) -> ShardRunner:
        return ShardRunner(self._config, self._group, self._device)

    def _new_state(self, *, load_weights: bool) -> TrainingState:
        state = TrainingState(
            self._config,
            model_path=self._model_path,
            seed=self._seed,
            with_reference=self._algorithm.kl_coefficient > 0,
            load_weights=load_weights,
            device=self._device,
        )
        if self._config.deterministic:
            check_supported(state.policy, self._device.type)
        return state
