"""Both roles of one worker in turn, with a real trainer and a real engine: one sleeps while the other computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from pool_builders import contents_of, make_spec, train_role
from trainer_samples import VOCABULARY, random_batch, save_tiny_model

from rlserve.engine import Engine, EngineConfig, Request, SamplingParams
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import UserError, WeightsRefusedError
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.roles.engine_rank import EngineRank
from rlserve.pool.roles.rollout import RolloutRole
from rlserve.trainers import Membership, TorchTrainerConfig
from rlserve.weights.receiver import Receiver
from rlserve.weights.transports.object_store import OBJECT_STORE

ALONE = Membership(rank=0, num_ranks=1, host="127.0.0.1", port=0, secret="s", generation=1)


class BothRoles:
    """What a worker has with ``pool.placement=colocated``."""

    def __init__(self, model: str, dtype: str) -> None:
        engine = EngineConfig(dtype=dtype, num_blocks=16, max_model_len=64)  # type: ignore[arg-type]
        self.spec = make_spec("cpu/0", model_path=model, engine=engine, trainer=TorchTrainerConfig(learning_rate=0.01))
        self.train = train_role(self.spec)
        self.rank = EngineRank(self.spec, Unpaced(), timeout_s=20.0)
        self.train.join(ALONE, loads_model=True, is_newcomer=False)

    def roll_out(self) -> RolloutRole:
        self.train.sleep()
        receiver = Receiver(OBJECT_STORE.receiving(self.spec.weights), keeps_last=True)
        return RolloutRole(self.rank.lead(None), receiver, contents_of(self.spec), Unpaced(), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_turn_of_rollout_serves_the_weights_of_the_step_before(tmp_path: Path, dtype: str) -> None:
    both = BothRoles(save_tiny_model(tmp_path), dtype)
    fingerprints = []
    for version in range(3):
        expected = fingerprint(both.train.weights_of(version).items())
        role = both.roll_out()
        with pytest.raises(WeightsRefusedError, match=f"holds version {version} of the weights, asked for was 7"):
            both.train.weights_of(7)
        receipt = role.copy_in(version, both.train.weights_of(version))
        assert (receipt.version, receipt.fingerprint) == (version, expected)
        request = Request(id="a", prompt_token_ids=(1, 2, VOCABULARY - 1), sampling=SamplingParams(max_tokens=5))
        role.submit([request])
        (output,) = role.collect(20.0).outputs
        assert output.samples[0].tokens.weight_versions.tolist() == [version] * len(output.samples[0].tokens)
        role.stop()
        role.free()
        both.train.wake()
        both.train.step(random_batch(version))
        fingerprints.append(expected)
    assert len(set(fingerprints)) == 3
    both.rank.end()


def test_the_cache_is_as_large_as_the_share_of_the_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**22))
    config = EngineConfig(dtype="float32", max_model_len=64)
    spec = make_spec("cpu/0", model_path=save_tiny_model(tmp_path), engine=config, engine_memory_share=0.25)
    rank = EngineRank(spec, Unpaced(), timeout_s=20.0)
    with pytest.raises(UserError, match=r"rollout_memory_share gives an engine 1 MiB, of which its weights take 1 MiB"):
        rank.size_cache(weight_bytes=2**20 - 1000)
    rank.size_cache(weight_bytes=2**19)
    told = Engine(spec.model_path, replace(config, kv_cache_bytes=2**19), load_weights=False)
    assert rank.lead(None).stats().num_blocks == told.stats().num_blocks
    told.close()
    rank.end()


def test_a_trainer_that_slept_steps_to_the_same_bits(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    slept, waked = BothRoles(model, "float32"), BothRoles(model, "float32")
    for step in range(2):
        slept.train.sleep()
        assert not slept.train.is_awake
        with pytest.raises(AssertionError, match="sleeps"):
            slept.train.step(random_batch(step))
        slept.train.wake()
        for each in (slept, waked):
            each.train.step(random_batch(step))
    slept.train.sleep()
    slept.train.join(ALONE, loads_model=False, is_newcomer=False)  # a change of the group wakes it too
    first, second = slept.train.weights_of(2), waked.train.weights_of(2)
    assert all(torch.equal(first[name], second[name]) for name in second)
