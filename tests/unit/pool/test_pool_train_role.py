"""How a worker takes the train role: what it builds beforehand, while the others train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pool_builders import make_spec, train_role
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import WorkerFailedError
from rlserve.pool.base import Copies
from rlserve.trainers import Membership, TorchTrainerConfig, create_trainer, factory
from rlserve.trainers.algorithms.config import GRPOConfig
from rlserve.trainers.backends.pytorch.backend import TorchBackend
from rlserve.weights.offer import Holding

ALONE = Membership(rank=0, num_ranks=1, host="127.0.0.1", port=0, secret="s", generation=1)


class LoggedTrainer:
    """Writes down what it is asked."""

    num_steps = 3
    waits_for_others = False

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.log.append(name)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def create(*arguments: Any, **settings: Any) -> LoggedTrainer:
        calls.append("create")
        return LoggedTrainer(calls)

    monkeypatch.setattr(factory, "create_trainer", create)
    return calls


def test_what_was_prepared_is_not_built_again_when_the_worker_joins(log: list[str]) -> None:
    role = train_role(make_spec("cpu/0"))
    for built in (["create"], ["leave", "prepare"]):
        log.clear()
        role.prepare()
        assert log == built
        role.join(ALONE, loads_model=False, is_newcomer=True)
        assert log == [*built, "resize"]
        role.leave()


def test_a_rank_computes_while_it_steps_and_does_not_wait_for_others(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    role, seen = train_role(make_spec("cpu/0")), []
    role.join(ALONE, loads_model=True, is_newcomer=False)

    def step(trainer: LoggedTrainer, batch: object) -> dict[str, float]:
        for waits in (False, True):
            trainer.waits_for_others = waits
            seen.append(role.is_computing)
        raise WorkerFailedError("a rank was lost")

    monkeypatch.setattr(LoggedTrainer, "step", step, raising=False)
    with pytest.raises(WorkerFailedError):
        role.step(random_batch(0, num_samples=2))
    assert seen == [True, False]
    assert not role.is_computing


def test_a_newcomer_that_was_not_prepared_keeps_nothing_of_before(log: list[str]) -> None:
    role = train_role(make_spec("cpu/0"))
    role.prepare()
    role.join(ALONE, loads_model=False, is_newcomer=True)
    log.clear()
    role.join(ALONE, loads_model=False, is_newcomer=True)
    assert log == ["leave", "resize"]


@pytest.mark.parametrize("leaves", [False, True])
def test_one_that_leaves_the_trainers_keeps_no_weights_to_compare_with(
    log: list[str], monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(LoggedTrainer, "weights", lambda self: {"w": torch.zeros(4096)}, raising=False)
    role = train_role(make_spec("cpu/0"))
    role.join(ALONE, loads_model=True, is_newcomer=False)
    role.copy(Copies(version=1))
    _, first = role.sender.send(1, None, ())
    role.copy(Copies(version=2))
    if leaves:
        role.leave()
    base = Holding(version=1, fingerprint=first.fingerprint)
    _, second = role.sender.send(2, base, ())
    assert second.base == (None if leaves else base)


def test_a_worker_whose_gang_is_lost_before_it_joins_frees_what_it_prepared(log: list[str]) -> None:
    role = train_role(make_spec("cpu/0"))
    role.release()
    role.prepare()
    log.clear()
    role.release()
    role.release()
    assert log == ["leave"]


def test_a_prepared_trainer_takes_a_state_without_building_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path)
    first, second = (
        create_trainer(TorchTrainerConfig(), GRPOConfig(), model_path=model, seed=0, load_weights=loads, device="cpu")
        for loads in (True, False)
    )
    second.leave()
    second.prepare()
    monkeypatch.setattr(TorchBackend, "_new_state", None)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    for trainer in (first, second):
        trainer.step(random_batch(0))
    weights = first.weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.weights().items())
