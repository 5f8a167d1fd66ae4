"""What of the backend ``deepspeed`` needs no DeepSpeed: its configuration, how ZeRO cuts, who computes what."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from trainer_samples import random_batch

from rlserve.errors import ConfigurationError, UserError
from rlserve.trainers import DeepSpeedTrainerConfig, GRPOConfig, LoraConfig, create_trainer
from rlserve.trainers.backends.deepspeed.head import HeadOptions, response_log_probs
from rlserve.trainers.backends.deepspeed.held_state import Pieces
from rlserve.trainers.backends.deepspeed.layout import ParameterLayout
from rlserve.trainers.backends.deepspeed.passes import plan_passes
from rlserve.trainers.backends.deepspeed.settings import deepspeed_settings
from rlserve.trainers.elastic.intervals import Interval, difference


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offload_optimizer": True, "zero_stage": 0}, "offload_optimizer: needs zero_stage 1, 2 or 3"),
        ({"offload_parameters": True}, "offload_parameters: needs zero_stage=3"),
        ({"zero_stage": 3, "lora": LoraConfig(rank=4)}, "zero_stage: must be 0, 1 or 2 with lora.rank above 0"),
        ({"learning_rate": 0.0}, "learning_rate: must be above 0"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DeepSpeedTrainerConfig(**changes)


def test_without_the_package_the_extra_is_named(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(UserError, match=r"rlserve\[deepspeed\].*trainer\.backend=torch"):
        create_trainer(DeepSpeedTrainerConfig(), GRPOConfig(), model_path=model_path, seed=0, device="cpu")


def test_settings_say_what_is_cut_up_and_what_is_in_host_memory() -> None:
    config = DeepSpeedTrainerConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True, max_grad_norm=0.5)
    settings = deepspeed_settings(config, num_elements=1000, pins_memory=True)
    assert settings["gradient_clipping"] == 0.5
    assert not settings["torch_autocast"]["enabled"]
    zero = settings["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"]) == (3, 1000)
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in deepspeed_settings(DeepSpeedTrainerConfig(), num_elements=1, pins_memory=False)


class _Network(nn.Module):
    """Parameters with and without decay, of sizes that nothing divides."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 7)
        self.value_head = nn.Linear(3, 1)


@pytest.fixture(params=[None, 1e-3], ids=["one-rate", "rate-of-the-head"])
def layout(request: pytest.FixtureRequest) -> ParameterLayout:
    networks = {"policy": _Network(), "critic": _Network(), "reference": _Network()}
    return ParameterLayout(networks, DeepSpeedTrainerConfig(critic_head_learning_rate=request.param))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_ranks_have_together_all_and_write_each_element_once(
    layout: ParameterLayout, zero_stage: int, num_ranks: int
) -> None:
    trained, everything = Interval(0, layout.num_trained_elements), Interval(0, layout.num_elements)
    assert everything.num_elements == 3 * (5 * 7 + 7 + 3 + 1)
    moments = [layout.moments_of(rank, num_ranks, zero_stage) for rank in range(num_ranks)]
    parameters = [layout.parameters_of(rank, num_ranks, zero_stage) for rank in range(num_ranks)]
    assert difference([trained], [each for held in moments for each in held]) == ()
    assert difference([everything], [each for held in parameters for each in held]) == ()
    for prefix, all_of, held in (("", everything, parameters), ("first_moment.", trained, moments)):
        written = [layout.written_by(rank, num_ranks, zero_stage, prefix) for rank in range(num_ranks)]
        assert sum(each.num_elements for parts in written for each in parts) == all_of.num_elements
        for own, parts in zip(held, written, strict=True):
            assert difference(parts, own) == (), "a rank writes what it has"
    if zero_stage and num_ranks > 1:
        assert max(sum(each.num_elements for each in held) for held in moments) < trained.num_elements


def test_pieces_are_read_and_written_across_their_borders() -> None:
    pieces = Pieces.empty((Interval(3, 5), Interval(5, 9), Interval(20, 22)))
    assert pieces.elements == (Interval(3, 9), Interval(20, 22))
    pieces.write(Interval(0, 30), torch.arange(30.0))
    assert pieces.read(Interval(4, 8)).tolist() == [4, 5, 6, 7]
    pieces.write(Interval(8, 21), torch.zeros(13))
    assert pieces.read(Interval(20, 22)).tolist() == [0, 21]


@pytest.mark.parametrize("num_ranks", [1, 3, 20])
def test_ranks_compute_every_token_once_in_as_many_passes(num_ranks: int) -> None:
    batch = random_batch(0, num_samples=12)
    plan = plan_passes(batch, np.arange(12), num_ranks, 60)
    passes = [plan.passes(rank) for rank in range(num_ranks)]
    assert len({len(each) for each in passes}) == 1
    counted = np.concatenate([each.part.tokens for own in passes for each in own if each.counts])
    assert sorted(counted) == list(range(batch.num_response_tokens))
    assert (counted == plan.tokens).all()
    rows = [[torch.from_numpy(each.part.tokens)[:, None] for each in own if each.counts] for own in passes]
    assert sum(map(len, rows)) + sum(not each.counts for own in passes for each in own) == len(plan.computed)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_head_in_chunks_is_the_head(monkeypatch: pytest.MonkeyPatch, cap: float | None, with_entropy: bool) -> None:
    monkeypatch.setattr("rlserve.trainers.backends.deepspeed.head._CHUNK_ELEMENTS", 1)
    torch.manual_seed(0)
    states, weight, targets = torch.randn(9, 4), torch.randn(11, 4), torch.randint(0, 11, (9,))
    options = HeadOptions(temperature=0.7, cap=cap, with_entropy=with_entropy)

    def at_once(states: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = linear(states, weight)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        found = (logits / 0.7).log_softmax(-1)
        picked = targets[:, None]
        entropies = -(found.exp() * found).sum(-1)
        return found.gather(-1, picked)[:, 0], logits.log_softmax(-1).gather(-1, picked)[:, 0], entropies

    gradients = []
    for chunked in (True, False):
        leaves = [each.clone().requires_grad_() for each in (states, weight)]
        log_probs, raw, entropies = (
            response_log_probs(leaves[0], leaves[1], targets, options) if chunked else at_once(*leaves)
        )
        loss = (log_probs * torch.arange(9.0)).sum()
        if with_entropy:
            assert entropies is not None
            loss = loss + (entropies**2).sum()
        loss.backward()
        gradients.append([log_probs.detach(), raw.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
