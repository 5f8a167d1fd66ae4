"""The policy losses beside PPO's, against closed forms over answers, values and slopes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from policy_samples import random_tokens, rows, slopes

from rlserve.trainers import GRPOConfig
from rlserve.trainers.algorithms.aggregation import aggregate
from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.losses.factory import POLICY_LOSSES

LENGTHS = [7, 1, 12, 3, 20, 5, 9, 2]
GAINS = [1.0, -2.0, -0.5, 0.7, 1.5, -1.0, 0.3, -0.2]
LOW, HIGH = 0.05, 0.08


def answers(log_probs: np.ndarray, tokens: PolicyTokens) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Advantage, log-probabilities and ratios of each answer."""
    for gain, new, old in zip(
        GAINS, rows(log_probs, LENGTHS), rows(tokens.old_log_probs.numpy(), LENGTHS), strict=True
    ):
        yield gain, new, np.exp(new) / np.exp(old)


def gspo(gain: float, _new: np.ndarray, ratios: np.ndarray) -> float:
    of_answer = float(np.prod(ratios)) ** (1 / len(ratios))
    return -min(of_answer * gain, float(np.clip(of_answer, 1 - LOW, 1 + HIGH)) * gain)


def geo_mean(gain: float, _new: np.ndarray, ratios: np.ndarray) -> float:
    low, high = np.exp(-LOW), np.exp(HIGH)
    clipped = np.minimum(ratios, high) if gain > 0 else np.maximum(ratios, low)
    return -gain * float(np.prod(clipped)) ** (1 / len(ratios))


def sapo(gain: float, _new: np.ndarray, ratios: np.ndarray) -> float:
    temperature = 0.8 if gain > 0 else 2.5
    return -gain * float(np.mean(4 / temperature / (1 + np.exp(-temperature * (ratios - 1)))))


def mean_over_answers(mode: str, tokens: PolicyTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and where it was clipped."""
    config = GRPOConfig(
        loss_mode=mode,  # type: ignore[arg-type]
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        tau_pos=0.8,
        tau_neg=2.5,
    )
    term = POLICY_LOSSES[config.loss_mode](tokens, config)
    lengths = np.array(LENGTHS, dtype=np.int32)
    weights = aggregate("seq-mean-token-mean", lengths, np.ones(sum(LENGTHS), dtype=bool), None)
    per_token = torch.from_numpy(weights.per_token.astype(np.float64))
    return (term.per_token * per_token).sum() / weights.normaliser, term.is_clipped


@pytest.mark.parametrize("closed_form", [gspo, geo_mean, sapo])
def test_the_loss_and_its_gradient_are_those_of_the_papers_objective(
    closed_form: Callable[[float, np.ndarray, np.ndarray], float],
) -> None:
    tokens = random_tokens(LENGTHS, spread=0.2, advantages=GAINS)

    def expected(log_probs: np.ndarray) -> np.ndarray:
        return np.array([np.mean([closed_form(*answer) for answer in answers(log_probs, tokens)])])

    loss, is_clipped = mean_over_answers(closed_form.__name__, tokens)
    loss.backward()
    log_probs = tokens.log_probs.detach().numpy()
    assert loss.item() == pytest.approx(float(expected(log_probs)[0]), rel=1e-7)
    np.testing.assert_allclose(tokens.log_probs.grad, slopes(expected, log_probs), atol=1e-7)
    share = float(is_clipped.double().mean())
    assert share == 0.0 if closed_form is sapo else 0.1 < share < 0.9


def test_gspo_clips_whole_answers() -> None:
    tokens = random_tokens(LENGTHS, spread=0.2, advantages=GAINS)
    _, is_clipped = mean_over_answers("gspo", tokens)
    assert all(row.all() or not row.any() for row in rows(is_clipped.numpy(), LENGTHS))


def test_cispo_weighs_every_tokens_gradient_by_its_clipped_ratio() -> None:
    tokens = random_tokens(LENGTHS, spread=1.0, advantages=GAINS)
    config = GRPOConfig(loss_mode="cispo", clip_ratio_low=0.9, clip_ratio_high=0.5)
    term = POLICY_LOSSES["cispo"](tokens, config)
    term.per_token.sum().backward()
    log_probs = tokens.log_probs.detach().numpy()
    ratios = np.exp(log_probs - tokens.old_log_probs.numpy())
    weights = np.minimum(np.maximum(ratios, 0.1), 1.5)
    gains = np.repeat(GAINS, LENGTHS)
    np.testing.assert_allclose(term.per_token.detach(), -weights * gains * log_probs, atol=1e-12)
    np.testing.assert_allclose(tokens.log_probs.grad, -weights * gains, atol=1e-12)
    np.testing.assert_array_equal(term.is_clipped, (ratios < 0.1) | (ratios > 1.5))
    assert 0.1 < float(term.is_clipped.double().mean()) < 0.9


def test_clip_cov_takes_the_gradient_from_selected_tokens_alone() -> None:
    tokens = random_tokens(LENGTHS, spread=0.2)
    config = GRPOConfig(loss_mode="clip_cov")
    term, plain = (POLICY_LOSSES[mode](tokens, config) for mode in ("clip_cov", "vanilla"))
    assert tokens.is_selected is not None
    assert 0 < int(tokens.is_selected.sum()) < sum(LENGTHS)
    torch.testing.assert_close(term.per_token, torch.where(tokens.is_selected, 0.0, plain.per_token))
    term.per_token.sum().backward()
    assert tokens.log_probs.grad is not None
    assert not tokens.log_probs.grad[tokens.is_selected].any()
    assert (term.is_clipped == (plain.is_clipped | tokens.is_selected)).all()


def test_kl_cov_holds_selected_tokens_near_the_old_policy() -> None:
    tokens = random_tokens(LENGTHS, spread=0.2)
    config = GRPOConfig(loss_mode="kl_cov", ppo_kl_coef=0.7)
    assert tokens.is_selected is not None
    selected = tokens.is_selected.numpy()

    def expected(log_probs: np.ndarray) -> np.ndarray:
        log_ratios = log_probs - tokens.old_log_probs.numpy()
        return -np.exp(log_ratios) * tokens.advantages.numpy() + 0.7 * selected * np.abs(log_ratios)

    term = POLICY_LOSSES["kl_cov"](tokens, config)
    term.per_token.sum().backward()
    log_probs = tokens.log_probs.detach().numpy()
    np.testing.assert_allclose(term.per_token.detach(), expected(log_probs), atol=1e-12)
    np.testing.assert_allclose(tokens.log_probs.grad, slopes(expected, log_probs), atol=1e-7)


@pytest.mark.parametrize("mode", sorted({*POLICY_LOSSES} - {"clip_cov", "kl_cov"}))
def test_at_the_old_policy_every_loss_has_the_gradient_of_reinforce(mode: str) -> None:
    tokens = random_tokens(LENGTHS, spread=0.0, advantages=GAINS)
    loss, is_clipped = mean_over_answers(mode, tokens)
    loss.backward()
    expected = -np.repeat(np.array(GAINS) / np.array(LENGTHS) / len(LENGTHS), LENGTHS)
    np.testing.assert_allclose(tokens.log_probs.grad, expected, rtol=1e-6)
    assert not is_clipped.any()
