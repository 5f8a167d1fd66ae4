"""One rank of a trainer: an algorithm on a backend. What a step computes is in ``step``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.errors import NonFiniteLossError, UserError
from rlserve.trainers.algorithms.base import Algorithm
from rlserve.trainers.algorithms.supervised.base import Supervised
from rlserve.trainers.backends.base import Backend, Wanted
from rlserve.trainers.base import Membership, StateCopy, Traffic, Trainer
from rlserve.trainers.batch import Batch
from rlserve.trainers.experience import experience_of
from rlserve.trainers.step import TrainingStep

logger = logging.getLogger(__name__)


class ElasticTrainer(Trainer):
    """See ``Trainer`` for the contract and ``create_trainer`` for the arguments."""

    def __init__(self, algorithm: Algorithm, backend: Backend, *, seed: int) -> None:
        self._algorithm = algorithm
        self._backend = backend
        self._seed = seed

    @property
    def num_steps(self) -> int:
        return self._backend.num_steps

    @property
    def last_metrics(self) -> dict[str, float]:
        return self._backend.last_metrics

    @property
    def waits_for_others(self) -> bool:
        return self._backend.waits_for_others

    def step(self, batch: Batch) -> dict[str, float]:
        batch, num_left_out = self._finite_part(batch)
        with self._failing_for_all():
            step = TrainingStep(self._algorithm, self._backend, batch=batch, num_left_out=num_left_out, seed=self._seed)
            return step.run()

    def evaluate(self, batch: Batch) -> dict[str, float]:
        algorithm = self._algorithm
        if not isinstance(algorithm, Supervised):
            raise UserError(f"{type(algorithm).__name__} is judged by the rewards of what its policy generates")
        with self._failing_for_all():
            wanted = Wanted(policy=not algorithm.needs.scores, values=algorithm.needs.scores)
            scores = self._backend.score(batch, wanted)
            return dict(algorithm.judge(experience_of(batch, scores, self._backend.carried)))

    @contextmanager
    def _failing_for_all(self) -> Iterator[None]:
        """What all ranks do together: the others wait for one that fails, so let them fail now, not at their
        deadline. A loss that is not finite is found by all at once."""
        try:
            yield
        except NonFiniteLossError:
            self._backend.take_back()
            raise
        except Exception as error:
            self._backend.disconnect()
            if is_out_of_memory(error):
                raise UserError(self._memory_advice(str(error).splitlines()[0])) from error
            raise

    def weights(self) -> dict[str, Tensor]:
        return self._backend.weights()

    def save_pretrained(self, folder: Path) -> None:
        self._backend.save_pretrained(folder)

    def meet(self, membership: Membership) -> None:
        self._backend.meet(membership)

    def break_off(self, generation: int) -> None:
        self._backend.break_off(generation)

    def resize(self, membership: Membership) -> Traffic:
        return self._backend.resize(membership)

    def sleep(self, *, offload: bool) -> None:
        self._backend.sleep(offload=offload)

    def wake(self) -> None:
        self._backend.wake()

    def prepare(self) -> None:
        self._backend.prepare()

    def leave(self) -> None:
        self._backend.leave()

    def state(self) -> dict[str, Tensor]:
        return self._backend.state()

    def copy_state(self) -> StateCopy:
        return self._backend.copy_state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._backend.load_state(state)

    def load_files(self, folder: Path) -> None:
        self._backend.load_files(folder)

    def log_probs(self, batch: Batch, *, alone: bool = False) -> NDArray[np.float32]:
        found = self._backend.score(batch, Wanted(policy=True), alone=alone).raw_log_probs
        assert found is not None
        return found

    def values(self, batch: Batch) -> NDArray[np.float32]:
        needs = self._algorithm.needs
        if not (needs.critic or needs.scores):
            raise UserError(f"{type(self._algorithm).__name__} trains no critic, so there are no values to ask for")
        found = self._backend.score(batch, Wanted(values=True)).values
        assert found is not None
        return found

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
        if self._backend.rank == 0:
            logger.warning("%s; they are left out", found)
        return batch.select(np.flatnonzero(is_finite)), len(odd)

    def _memory_advice(self, found: str) -> str:
        return (
            f"the trainer ran out of memory in step {self.num_steps + 1} ({found}); lower "
            f"trainer.ppo_max_token_len_per_gpu, the tokens that are computed at once (now "
            f"{self._backend.max_tokens_per_pass}), or, if one sample is too long, rollout.max_tokens"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory: on a GPU it has an error for that, on a CPU only a message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
