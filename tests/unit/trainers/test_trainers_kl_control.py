"""The adaptive coefficient of the KL penalty, against its closed form, as part of the trainer's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_samples import experience_of, rows
from trainer_samples import random_batch

from rlserve.errors import ConfigurationError, WeightsRefusedError
from rlserve.trainers import GRPOConfig, TorchTrainerConfig, Trainer, create_trainer
from rlserve.trainers.algorithms import policy_gradient
from rlserve.trainers.algorithms.advantages import token_rewards
from rlserve.trainers.algorithms.base import Credit
from rlserve.trainers.algorithms.grpo import GRPO
from rlserve.trainers.algorithms.kl_control import adapted

LENGTHS = [4, 1, 7, 2, 5]
ADAPTIVE = GRPOConfig(kl_coefficient=0.2, target_kl=0.1, kl_horizon=50.0)


def credit(config: GRPOConfig, coefficient: float) -> tuple[Credit, np.ndarray]:
    """And the divergence of each token."""
    rng = np.random.default_rng(0)
    policy, reference = (-rng.uniform(0.1, 2.0, sum(LENGTHS)).astype(np.float32) for _ in range(2))
    seen = experience_of(
        [1.0, 0.0, 0.0, 1.0, 0.5],
        LENGTHS,
        log_probs=policy,
        reference_log_probs=reference,
        carried={"kl_coefficient": coefficient},
    )
    return GRPO(config).credit(seen), policy.astype(float) - reference


@pytest.mark.parametrize("target", [0.001, 0.35, 100.0])
def test_the_coefficient_follows_the_divergence_and_this_step_has_the_old_one(target: float) -> None:
    config = GRPOConfig(kl_coefficient=0.2, kl_penalty="k2", target_kl=target, kl_horizon=50.0)
    found, difference = credit(config, 0.3)
    divergence = np.mean([(answer**2 / 2).mean() for answer in rows(difference, LENGTHS)])
    error = min(max(divergence / target - 1, -0.2), 0.2)
    assert found.carried == {"kl_coefficient": pytest.approx(0.3 * (1 + error * 5 / 50))}
    assert found.metrics["critic/kl_coefficient"] == 0.3
    penalties = -0.3 * difference**2 / 2
    last = np.cumsum(LENGTHS) - 1
    penalties[last] += [1.0, 0.0, 0.0, 1.0, 0.5]
    np.testing.assert_allclose(found.rewards, penalties)


def test_the_divergences_of_a_step_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module in (policy_gradient, token_rewards):
        compute = module.kl_penalties
        monkeypatch.setattr(module, "kl_penalties", lambda *given, compute=compute: calls.append("") or compute(*given))
    credit(ADAPTIVE, 0.3)
    credit(GRPOConfig(kl_coefficient=0.2), 0.3)
    assert len(calls) == 2, "once each"


def test_a_fixed_coefficient_carries_nothing() -> None:
    assert GRPO(GRPOConfig(kl_coefficient=0.2)).carried == {}
    found, _ = credit(GRPOConfig(kl_coefficient=0.2), 0.3)
    assert found.carried == {}
    assert "critic/kl_coefficient" not in found.metrics


def test_a_step_of_many_samples_takes_no_coefficient_below_zero() -> None:
    assert adapted(0.2, np.zeros(1000), target_kl=0.1, horizon=10.0) == 0.0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"target_kl": 0.1}, "target_kl: must be null, or above 0 with a kl_coefficient to begin with, got 0.1"),
        ({"target_kl": 0.0, "kl_coefficient": 0.1}, "target_kl: must be null, or above 0 with a kl_coefficient"),
        ({"kl_horizon": 0.0}, "kl_horizon: must be above 0, got 0.0"),
    ],
)
def test_a_target_without_a_coefficient_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        GRPOConfig(**settings)


def trainer_of(model_path: str, sharding: Any, config: GRPOConfig = ADAPTIVE) -> Trainer:
    return create_trainer(
        TorchTrainerConfig(sharding=sharding, learning_rate=1e-3), config, model_path=model_path, seed=0
    )


@pytest.mark.parametrize("sharding", ["optimizer", "full"])
def test_a_restored_trainer_goes_on_with_the_same_coefficient(model_path: str, sharding: Any, tmp_path: Path) -> None:
    first = trainer_of(model_path, sharding)
    batches = [random_batch(seed) for seed in range(3)]
    coefficients = [first.step(batch)["critic/kl_coefficient"] for batch in batches[:2]]
    assert coefficients[0] == 0.2
    assert coefficients[1] != 0.2
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    first.copy_state().write(tmp_path / "trainer", policy_folder=tmp_path / "policy")
    expected = first.step(batches[2])["critic/kl_coefficient"]
    assert expected not in coefficients
    second, third = trainer_of(model_path, sharding), trainer_of(model_path, sharding)
    second.load_state(state)
    third.load_files(tmp_path / "trainer")
    assert second.step(batches[2])["critic/kl_coefficient"] == expected
    assert third.step(batches[2])["critic/kl_coefficient"] == expected


def test_a_state_without_the_coefficient_is_refused(model_path: str) -> None:
    fixed = trainer_of(model_path, "optimizer", GRPOConfig(kl_coefficient=0.2))
    with pytest.raises(WeightsRefusedError, match="lacks tensor 'carried'"):
        trainer_of(model_path, "optimizer").load_state(fixed.state())
