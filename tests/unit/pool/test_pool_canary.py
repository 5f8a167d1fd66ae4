"""The canary with a real trainer and a real engine: sound ones agree, and wrong ones that are planted are found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pool_builders import contents_of, make_spec, train_role
from trainer_samples import VOCABULARY, random_batch, save_tiny_model

from rlserve.controller.canary import CanaryWatch, Taken
from rlserve.controller.clock import RunClock
from rlserve.controller.context import RunContext
from rlserve.controller.counters import Counters
from rlserve.controller.events import EventBus
from rlserve.controller.signal import Signal
from rlserve.engine import Engine, EngineConfig
from rlserve.errors import WeightsRefusedError, WorkerLostError
from rlserve.pool.base import Copies
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.roles.rollout import RolloutRole
from rlserve.tracking.events import CanaryEvent
from rlserve.trainers import Membership, TorchTrainerConfig
from rlserve.weights.canary import EXACT_TOLERANCE, CanaryScores, choose_prompts, tolerance_of
from rlserve.weights.config import CanaryConfig, ObjectStoreConfig
from rlserve.weights.offer import Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.transports.object_store import OBJECT_STORE

ALONE = Membership(rank=0, num_ranks=1, host="127.0.0.1", port=0, secret="s", generation=1)
CANARY = choose_prompts([range(2, VOCABULARY), (5, 3, 1)], num_prompts=4, max_model_len=64, seed=0)


class Pair:
    """A trainer and a replica, as two workers have them, with the controller's watch between."""

    def __init__(self, model: str, *, dtype: str = "float32", **canary: Any) -> None:
        weights = ObjectStoreConfig(canary=CanaryConfig(**canary))
        config = EngineConfig(dtype=dtype, num_blocks=16, max_model_len=64)  # type: ignore[arg-type]
        trainer = TorchTrainerConfig(learning_rate=0.01)
        spec = make_spec("cpu/0", model_path=model, engine=config, trainer=trainer, weights=weights, canary=CANARY)
        self.train = train_role(spec)
        self.train.join(ALONE, loads_model=True, is_newcomer=False)
        self.engine = Engine(model, config, load_weights=False)
        receiver = Receiver(OBJECT_STORE.receiving(weights), keeps_last=True)
        self.replica = RolloutRole(self.engine, receiver, contents_of(spec), Unpaced(), "cpu")
        run = RunContext(
            clock=RunClock(started=0.0),
            counters=Counters(),
            events=EventBus(),
            changed=Signal(),
            tasks=asyncio.TaskGroup(),
        )
        self.events: list[CanaryEvent] = []
        run.events.subscribe(CanaryEvent, self.events.append)
        self.watch = CanaryWatch(run, tolerance=tolerance_of(weights.canary, config, trainer.dtype), timeout_s=20.0)
        self.plant: Callable[[int], None] = lambda number: None
        """Done to the replica after each time that it has taken the weights."""
        self.num_takes = 0

    @property
    def difference(self) -> float:
        return self.watch.metrics()["weights/canary_difference_max"]

    def sync(self, version: int) -> None:
        """What the controller does with a version."""
        expected = self.train.copy(Copies(version=version)).canary
        cargo, part = self.train.sender.send(version, None, ())
        offers = [Offer(version=version, parts=(part,))]

        async def take(anew: bool) -> Taken:
            receipt = self.replica.take_weights(offers, [cargo])
            self.plant(self.num_takes)
            self.num_takes += 1
            return Taken(receipt=receipt, expected=expected)

        outside: Any = self
        asyncio.run(self.watch.accepted("r0", outside, take))

    @property
    def score_canary(self) -> Pair:
        return self

    async def remote(self, version: int) -> CanaryScores:
        """As a call to the replica's worker."""
        return self.replica.score_canary(CANARY, version)

    def close(self) -> None:
        self.replica.stop()
        self.engine.close()


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(**settings: Any) -> Pair:
        pairs.append(Pair(save_tiny_model(tmp_path), **settings))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-4), ("bfloat16", 0.08)])
def test_trainer_and_engine_agree_on_every_version(make_pair: Callable[..., Pair], dtype: str, largest: float) -> None:
    pair, scores = make_pair(dtype=dtype), []
    for version in range(3):
        pair.sync(version)
        assert 0.0 < pair.difference < largest
        scores.append(pair.replica.score_canary(CANARY, version))
        pair.train.step(random_batch(version))
    assert len(set(scores)) == 3, "they see what training changes"
    assert (pair.events, pair.num_takes) == ([], 3)
    with pytest.raises(WeightsRefusedError, match="the engine has version 2 of the weights, asked for was 3"):
        pair.replica.score_canary(CANARY, 3)


def test_a_bit_that_flips_after_the_weights_were_loaded_is_found_and_made_good(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()

    def flip_once(number: int) -> None:
        if number == 1:
            memory = pair.engine._runner._parameters._fused[-1].view(-1)
            memory[memory.abs().argmax()] *= -1.0

    pair.plant = flip_once
    pair.sync(0)
    pair.train.step(random_batch(0))
    pair.sync(1)
    assert pair.num_takes == 3
    (event,) = pair.events
    assert (event.version, event.is_replaced) == (1, False)
    assert pair.difference == event.difference > EXACT_TOLERANCE
    pair.train.step(random_batch(1))
    pair.sync(2)
    assert pair.difference < 1e-4


def test_an_engine_that_computes_wrongly_with_the_right_weights_is_lost(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.sync(0)
    attention: Any = pair.engine._runner._attention
    attention._rotation_P2F.mul_(0.5)
    pair.train.step(random_batch(0))
    with pytest.raises(WorkerLostError, match="r0 differs from the trainer by"):
        pair.sync(1)
    assert [event.is_replaced for event in pair.events] == [False, True]
    assert pair.num_takes == 3


@pytest.mark.parametrize("canary", [{"num_prompts": 0}, {"every": 2}])
def test_where_no_canary_is_due_nothing_is_computed(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch, canary: dict[str, int]
) -> None:
    pair = make_pair(**canary)
    pair.train.step(random_batch(0))
    monkeypatch.setattr(Engine, "score", None)
    pair.sync(1)
    assert pair.watch.metrics() == {}


def test_training_does_not_notice(make_pair: Callable[..., Pair]) -> None:
    pairs = make_pair(), make_pair(num_prompts=0)
    for step in range(3):
        metrics = []
        for pair in pairs:
            metrics.append(pair.train.step(random_batch(step)).metrics)
            pair.sync(step + 1)
        assert metrics[0] == metrics[1]
    first, second = (pair.train.weights_of(3) for pair in pairs)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_both_roles_of_one_worker_are_compared_too(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    described = pair.train.describe_weights(0)
    receipt = pair.replica.copy_in(0, pair.train.weights_of(0))
    assert described.fingerprint == receipt.fingerprint
    assert described.canary == pair.train.copy(Copies(version=0)).canary
    pair.train.sender.drop_snapshot(0)
