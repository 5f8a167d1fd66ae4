"""What policy and critic learn at, by schedule, and that the policy stays as it is while the critic warms up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ppo_trainers import copy_of, make_trainer
from torch.optim.lr_scheduler import LambdaLR
from trainer_samples import random_batch
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup

from rlserve.errors import UserError
from rlserve.trainers import TorchTrainerConfig
from rlserve.trainers.backends.learning_rates import learning_rates

NETWORKS = ("policy", "critic")


def rates_of(num_updates: int, **fields: Any) -> dict[str, list[float]]:
    """Of each network, update by update."""
    config = TorchTrainerConfig(learning_rate=4.0, critic_learning_rate=8.0, **fields)
    found = [learning_rates(config, NETWORKS, number) for number in range(num_updates)]
    return {network: [rates[network] for rates in found] for network in NETWORKS}


def of_transformers(scheduler: LambdaLR, num_updates: int) -> list[float]:
    return [rate_at(number) for rate_at in scheduler.lr_lambdas for number in range(num_updates)]


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_warm_up_raises_both_learning_rates_linearly() -> None:
    assert rates_of(6, num_warmup_steps=4) == {
        "policy": [1.0, 2.0, 3.0, 4.0, 4.0, 4.0],
        "critic": [2.0, 4.0, 6.0, 8.0, 8.0, 8.0],
    }


@pytest.mark.parametrize("num_warmup", [0, 5])
def test_after_the_warm_up_schedules_are_those_of_transformers(num_warmup: int) -> None:
    fields = {"num_warmup_steps": num_warmup, "num_schedule_steps": 20}
    line = rates_of(30, learning_rate_schedule="linear", **fields)["critic"]
    theirs = of_transformers(get_linear_schedule_with_warmup(optimizer(), num_warmup, 20), 30)
    assert line[num_warmup:] == pytest.approx([8.0 * share for share in theirs[num_warmup:]])
    assert line[20:] == [0.0] * 10
    for lowest in (0.0, 0.1):
        cosine = rates_of(20, learning_rate_schedule="cosine", min_learning_rate_ratio=lowest, **fields)["critic"]
        scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer(), num_warmup, 20, min_lr_rate=lowest)
        theirs = of_transformers(scheduler, 20)
        assert cosine[num_warmup:] == pytest.approx([8.0 * share for share in theirs[num_warmup:]])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_falls_and_stays_at_its_lowest(schedule: str) -> None:
    found = rates_of(
        12, learning_rate_schedule=schedule, num_schedule_steps=8, num_warmup_steps=2, min_learning_rate_ratio=0.25
    )["policy"]
    assert found[2] == 4.0
    assert all(later < earlier for earlier, later in itertools.pairwise(found[2:9]))
    assert found[8:] == [1.0] * 4


def test_the_schedule_of_the_policy_begins_after_the_critics_warm_up() -> None:
    found = rates_of(
        8, critic_warmup_steps=3, num_warmup_steps=2, num_schedule_steps=7, learning_rate_schedule="linear"
    )
    assert found["policy"] == pytest.approx([0.0, 0.0, 0.0, 2.0, 4.0, 4.0, 2.0, 0.0])
    assert found["critic"] == pytest.approx([4.0, 8.0, 8.0, 6.4, 4.8, 3.2, 1.6, 0.0])


def test_the_rate_of_the_head_follows_the_critics_schedule() -> None:
    fields: dict[str, Any] = {"critic_warmup_steps": 3, "num_warmup_steps": 2, "learning_rate_schedule": "linear"}
    config = TorchTrainerConfig(
        critic_learning_rate=8.0, critic_head_learning_rate=16.0, num_schedule_steps=7, **fields
    )
    for number in range(8):
        found = learning_rates(config, NETWORKS, number)
        assert found["critic_head"] == 2 * found["critic"]
    assert learning_rates(config, ["policy"], 0).keys() == {"policy"}, "without a critic there is no head"


HEAD = {"critic.value_head.weight": 0.1, "critic.value_head.bias": 0.0}
"""The head's parameters and their weight decay, where that of the trainer is 0.1."""


@pytest.mark.parametrize("sharding", ["optimizer", "full"])
def test_the_head_learns_by_adamw_at_its_own_rate(model_path: str, sharding: str) -> None:
    trainer = make_trainer(
        model_path, critic_head_learning_rate=0.05, sharding=sharding, weight_decay=0.1, num_warmup_steps=2
    )
    for step, rate in ((1, 0.025), (2, 0.05), (3, 0.05)):
        before = copy_of(trainer.state())
        assert trainer.step(random_batch(step))["critic/head_lr"] == rate
        after = trainer.state()
        for name, decay in HEAD.items():
            first, second = (after[f"{kind}_moment.{name}"].double() for kind in ("first", "second"))
            direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
            plain = before[name].double() * (1 - rate * decay) - rate * direction
            torch.testing.assert_close(after[name].double(), plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sharding", ["optimizer", "full"])
def test_nothing_but_the_head_learns_at_its_rate(model_path: str, sharding: str) -> None:
    states = []
    for rate in (None, 0.05):
        trainer = make_trainer(model_path, critic_head_learning_rate=rate, sharding=sharding)
        assert ("critic/head_lr" in trainer.step(random_batch(0))) == (rate is not None)
        states.append(trainer.state())
    one, other = states
    assert {name for name in one if not torch.equal(one[name], other[name])} == set(HEAD)


def test_while_the_critic_warms_up_the_policy_keeps_its_bits(model_path: str) -> None:
    trainer = make_trainer(model_path, critic_warmup_steps=2, weight_decay=0.1)
    states = [copy_of(trainer.state())]
    for step in range(3):
        metrics = trainer.step(random_batch(step))
        assert (metrics["actor/lr"] > 0.0) == (step == 2)
        states.append(copy_of(trainer.state()))

    def learned(number: int, network: str) -> bool:
        before, after = states[number], states[number + 1]
        return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(f"{network}."))

    assert [learned(number, "policy") for number in range(3)] == [False, False, True]
    assert [learned(number, "critic") for number in range(3)] == [True, True, True]


def test_a_trainer_by_itself_must_be_told_how_long_a_schedule_is(model_path: str) -> None:
    with pytest.raises(UserError, match="learning_rate_schedule=cosine needs num_schedule_steps"):
        make_trainer(model_path, learning_rate_schedule="cosine")
    make_trainer(model_path, learning_rate_schedule="cosine", num_schedule_steps=4).step(random_batch(0))
