"""Adapters from a trainer's worker into a replica's engine: what travels, what is merged, what proves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pool_builders import contents_of, make_spec, train_role
from safetensors.torch import load_file, save_file
from trainer_samples import VOCABULARY, random_batch, save_tiny_model
from transformers import AutoModelForCausalLM

from rlserve.engine import Engine, EngineConfig
from rlserve.errors import WeightsRefusedError
from rlserve.pool.base import Copies
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.roles.rollout import RolloutRole
from rlserve.trainers import LoraConfig, Membership, TorchTrainerConfig
from rlserve.weights.canary import choose_prompts
from rlserve.weights.config import ObjectStoreConfig
from rlserve.weights.contents.adapters import Adapters
from rlserve.weights.offer import Holding, Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.transports.object_store import ObjectStoreReceivingEnd

ALONE = Membership(rank=0, num_ranks=1, host="127.0.0.1", port=0, secret="s", generation=1)
CANARY = choose_prompts([range(2, VOCABULARY), (5, 3, 1)], num_prompts=4, max_model_len=64, seed=0)
LORA = LoraConfig(rank=2, alpha=8.0)


class Pair:
    """A trainer and a replica, as two workers have them, on models of their own."""

    def __init__(self, model: str, *, replicas_model: str | None = None, dtype: str = "float32") -> None:
        engine = EngineConfig(dtype=dtype, num_blocks=16, max_model_len=64)  # type: ignore[arg-type]
        trainer = TorchTrainerConfig(learning_rate=0.02, critic_learning_rate=0.02, lora=LORA)
        spec = make_spec("cpu/0", model_path=model, engine=engine, trainer=trainer, canary=CANARY)
        self.train = train_role(spec)
        self.train.join(ALONE, loads_model=True, is_newcomer=False)
        there = dataclasses.replace(spec, model_path=replicas_model or model)
        self.contents = contents_of(there)
        self.engine = Engine(there.model_path, engine, load_weights=False)
        receiver = Receiver(ObjectStoreReceivingEnd(ObjectStoreConfig()), keeps_last=True)
        self.replica = RolloutRole(self.engine, receiver, self.contents, Unpaced(), "cpu")

    def publish(self, version: int, base: Holding | None = None) -> tuple[Offer, Any]:
        self.scores = self.train.copy(Copies(version=version)).canary
        cargo, part = self.train.sender.send(version, base, ())
        return Offer(version=version, parts=(part,), base=part.base), cargo

    def sync(self, version: int, base: Holding | None = None) -> Offer:
        offer, cargo = self.publish(version, base)
        receipt = self.replica.take_weights([offer], [cargo])
        assert receipt.holding == offer.holding
        return offer


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Their engines' threads end with the test."""
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.replica.abandon()


def assert_scores_agree(pair: Pair, version: int, atol: float) -> None:
    for found, expected in zip(pair.replica.score_canary(CANARY, version), pair.scores, strict=True):
        np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_engine_with_merged_adapters_scores_as_the_trainer(
    tmp_path: Path, pairs: list[Pair], family: str, tied: bool
) -> None:
    pair = Pair(save_tiny_model(tmp_path, family, tied=tied), dtype="float32")
    pairs.append(pair)
    first = pair.sync(0)
    assert_scores_agree(pair, 0, atol=1e-5)
    before = pair.scores
    for step in range(2):
        pair.train.step(random_batch(step))
    offer = pair.sync(2, first.holding)
    assert_scores_agree(pair, 2, atol=1e-5)
    assert np.abs(np.subtract(pair.scores[0], before[0])).max() > 1e-3, "training has changed something"
    assert offer.num_whole_bytes < 0.5 * pair.train.weight_bytes, "adapters alone travel"
    assert pair.train.weight_bytes == sum(tensor.nbytes for _, tensor in pair.engine.named_weights())


def test_what_is_merged_does_not_depend_on_the_versions_before(tmp_path: Path, pairs: list[Pair]) -> None:
    model = save_tiny_model(tmp_path)
    pairs += [Pair(model, dtype="bfloat16"), Pair(model, dtype="bfloat16")]
    for step in range(3):
        for pair in pairs:
            pair.train.step(random_batch(step))
        pairs[0].sync(step + 1)
    pairs[1].sync(3)
    often, once = ({name: tensor.clone() for name, tensor in pair.engine.named_weights()} for pair in pairs)
    assert all(torch.equal(tensor, once[name]) for name, tensor in often.items())


def test_merged_weights_are_those_of_peft(tmp_path: Path, pairs: list[Pair]) -> None:
    model = save_tiny_model(tmp_path)
    pair = Pair(model)
    pairs.append(pair)
    pair.train.step(random_batch(0))
    pair.sync(1)
    pair.train.copy(Copies(state=True))
    pair.train.write_state(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "policy")).merge_and_unload().state_dict()
    for name, tensor in pair.engine.named_weights():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-5)


def test_a_replica_on_another_base_is_refused(tmp_path: Path, pairs: list[Pair]) -> None:
    """Only the canary would find it otherwise: the adapters have arrived whole."""
    model, other = save_tiny_model(tmp_path / "one"), save_tiny_model(tmp_path / "other")
    weights = load_file(f"{other}/model.safetensors")
    weights["model.norm.weight"][3] += 0.125
    save_file(weights, f"{other}/model.safetensors", metadata={"format": "pt"})
    pair = Pair(model, replicas_model=other)
    pairs.append(pair)
    offer, cargo = pair.publish(0)
    with pytest.raises(WeightsRefusedError, match="its fingerprint is"):
        pair.replica.take_weights([offer], [cargo])


@pytest.mark.parametrize("flips_engine", [True, False])
def test_a_bit_that_flips_in_the_engine_shows_in_the_receipt(
    tmp_path: Path, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, flips_engine: bool
) -> None:
    pair = Pair(save_tiny_model(tmp_path))
    pairs.append(pair)
    tensors = pair.train.weights_of(0)
    load = pair.engine.load_weights

    def load_wrongly(version: int, whole: Any) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        load(version, dict(whole) | ({name: whole[name] * 1.0001} if flips_engine else {}))

    monkeypatch.setattr(pair.engine, "load_weights", load_wrongly)
    receipt, expected = pair.replica.copy_in(0, tensors), pair.train.describe_weights(0)
    assert (receipt.fingerprint == expected.fingerprint) is not flips_engine


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    contents = Adapters(Path(save_tiny_model(tmp_path)), scale=1.0, engine_dtype=torch.float32)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    first, second = torch.zeros(2, 32), torch.zeros(32, 2)
    with pytest.raises(WeightsRefusedError, match=r"q_proj.lora_B.weight is missing"):
        contents.whole({f"{layer}.lora_A.weight": first})
    with pytest.raises(WeightsRefusedError, match=r"has shape \[32, 32\], and the adapter that arrived is"):
        contents.whole({f"{layer}.lora_A.weight": first[:, :5], f"{layer}.lora_B.weight": second})
    with pytest.raises(WeightsRefusedError, match=r"has no model.layers.7.self_attn.q_proj.weight"):
        contents.whole({f"{layer.replace('.0.', '.7.')}.lora_{one}.weight": first for one in "AB"})
