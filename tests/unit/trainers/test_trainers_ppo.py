"""Whole steps of the PPO trainer on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from trainer_samples import VOCABULARY, random_batch, save_tiny_model
from transformers import AutoModel, AutoModelForCausalLM

from rlserve.errors import NonFiniteLossError, UserError, WeightsRefusedError, WorkerFailedError
from rlserve.trainers import Batch, Membership, PPOConfig, TorchTrainerConfig, Trainer, create_trainer
from rlserve.trainers.backends.pytorch.head import OutputHead


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def make_trainer(
    model_path: str, algorithm: PPOConfig | None = None, temperature: float = 1.0, **config: Any
) -> Trainer:
    fields = {"learning_rate": 1e-3, "critic_learning_rate": 1e-2, "num_logical_shards": 5, **config}
    return create_trainer(
        TorchTrainerConfig(**fields), algorithm or PPOConfig(), model_path=model_path, seed=0, temperature=temperature
    )


def copy_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class PlainPPO:
    """PPO's first update written out: float64, one sample at a time, one autograd graph over the whole batch."""

    def __init__(self, model_path: str, trainer: Trainer, algorithm: PPOConfig, temperature: float) -> None:
        self.algorithm = algorithm
        self.temperature = temperature
        self.policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
        self.reference = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
        self.critic = AutoModel.from_pretrained(model_path, dtype=torch.float64).eval()
        self.head = torch.nn.Linear(self.critic.config.hidden_size, 1, dtype=torch.float64)
        self._copy(self.policy, trainer.weights())
        saved = trainer.state()
        for module, prefix in ((self.critic, "critic.backbone."), (self.head, "critic.value_head.")):
            self._copy(module, {n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)})

    @staticmethod
    def _copy(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[name])

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Of ``policy loss + coefficient * value loss``, under the trainer's names."""
        algorithm = self.algorithm
        samples = list(self._samples(batch))
        advantages, losses = [], []
        for sample in samples:
            running, values = 0.0, [*sample["values"].tolist(), 0.0]
            estimates = []
            for t in reversed(range(len(sample["log_probs"]))):
                reward = -algorithm.kl_coefficient * (sample["log_probs"][t] - sample["reference"][t]).item()
                reward += sample["reward"] if t == len(sample["log_probs"]) - 1 else 0.0
                delta = reward + algorithm.gamma * values[t + 1] - values[t]
                running = delta + algorithm.gamma * algorithm.gae_lambda * running
                estimates.insert(0, running)
            advantages.append(torch.tensor(estimates, dtype=torch.float64))
        all_advantages = torch.cat(advantages)
        mean, deviation = all_advantages.mean(), all_advantages.std(unbiased=False)
        for sample, estimates in zip(samples, advantages, strict=True):
            log_probs, values = sample["log_probs"], sample["values"]
            weights = (log_probs.detach() - sample["behaviour"]).exp().clamp(max=algorithm.importance_sampling_cap)
            ratios = (log_probs - log_probs.detach()).exp()
            policy_loss = -weights * ratios * (estimates - mean) / deviation
            value_loss = 0.5 * (values - (estimates + values.detach())) ** 2
            loss = policy_loss + algorithm.value_coefficient * value_loss
            losses.append(loss - algorithm.entropy_coefficient * sample["entropies"])
        torch.cat(losses).mean().backward()
        modules = {"policy.": self.policy, "critic.backbone.": self.critic, "critic.value_head.": self.head}
        return {
            prefix + name: parameter.grad
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }

    def _samples(self, batch: Batch):
        token_start = response_start = 0
        for index, (prompt, response) in enumerate(zip(batch.prompt_lengths, batch.response_lengths, strict=True)):
            tokens = torch.from_numpy(batch.token_ids[token_start : token_start + prompt + response].astype(np.int64))
            behaviour = batch.behaviour_log_probs[response_start : response_start + response]
            token_start, response_start = token_start + prompt + response, response_start + response
            policy, reference = (
                (model(tokens[None]).logits[0, prompt - 1 : -1] / self.temperature).log_softmax(-1)
                for model in (self.policy, self.reference)
            )
            targets = tokens[prompt:, None]
            yield {
                "log_probs": policy.gather(-1, targets)[:, 0],
                "reference": reference.gather(-1, targets)[:, 0],
                "entropies": -(policy.exp() * policy).sum(-1),
                "values": self.head(self.critic(tokens[None]).last_hidden_state[0, prompt - 1 : -1])[:, 0],
                "behaviour": torch.from_numpy(behaviour.astype(np.float64)),
                "reward": float(batch.rewards[index]),
            }


@pytest.mark.parametrize(
    ("algorithm", "temperature"),
    [
        (PPOConfig(), 1.0),
        (PPOConfig(kl_coefficient=0.3, entropy_coefficient=0.02, gamma=0.9, gae_lambda=0.8), 1.0),
        (PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.1, value_coefficient=2.0), 0.7),
    ],
    ids=["default", "kl-entropy", "temperature"],
)
def test_gradients_equal_a_plain_reference(tmp_path: Path, algorithm: PPOConfig, temperature: float) -> None:
    # Weights of an ordinary size: with the large ones of the other tests, float32 rounding alone comes to 1e-6.
    model_path = save_tiny_model(tmp_path, initializer_range=0.05)
    # With beta1 = 0 the first moment is the gradient itself, and nothing is clipped.
    trainer = make_trainer(model_path, algorithm, temperature, adam_beta1=0.0, max_grad_norm=1e9)
    trainer.step(random_batch(3))  # moves policy and critic away from where they began
    batch = random_batch(4)
    expected = PlainPPO(model_path, trainer, algorithm, temperature).gradients(batch)
    trainer.step(batch)
    state = trainer.state()
    for network in ("policy.", "critic."):
        names = [name for name in expected if name.startswith(network)]
        ours = torch.cat([state[f"first_moment.{name}"].flatten().double() for name in names])
        plain = torch.cat([expected[name].flatten() for name in names])
        assert float((ours - plain).norm() / plain.norm()) < 1e-6


def test_metrics_are_finite_numbers_under_known_names(model_path: str) -> None:
    trainer = make_trainer(model_path, PPOConfig(kl_coefficient=0.1))
    batch = random_batch(0)
    found = trainer.step(batch)
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())
    assert found["critic/score/mean"] == pytest.approx(float(batch.rewards.mean()))
    assert found["response_length/max"] == batch.response_lengths.max()
    assert found["critic/kl"] == found["critic/kl_k3"] == 0.0, "before the first update the policy is the reference"
    assert found["actor/lr"] == 1e-3
    assert found["training/staleness/max"] == 0.0
    names = {"actor/pg_loss", "actor/ppo_kl", "actor/pg_clipfrac", "actor/entropy", "actor/grad_norm"}
    names |= {"critic/vf_loss", "critic/vf_clipfrac", "critic/vf_explained_var", "critic/rewards/mean"}
    names |= {f"critic/{what}/{how}" for what in ("advantages", "returns", "values") for how in ("mean", "max", "min")}
    names |= {"training/rollout_probs_diff_mean", "training/importance_weight_mean", "prompt_length/mean"}
    assert names <= found.keys()


def with_log_probs(batch: Batch, log_probs: np.ndarray, versions: np.ndarray | None = None) -> Batch:
    versions = batch.weight_versions if versions is None else versions
    return dataclasses.replace(batch, log_probs=log_probs, behaviour_log_probs=log_probs, weight_versions=versions)


def test_log_prob_difference_is_measured_on_the_newest_tokens(model_path: str) -> None:
    trainer = make_trainer(model_path)
    trainer.step(random_batch(0))
    batch = random_batch(1)
    is_new = np.arange(batch.num_response_tokens) % 2 == 1
    engine = trainer.log_probs(batch) + np.where(is_new, 0.25, 7.0).astype(np.float32)
    found = trainer.step(with_log_probs(batch, engine, is_new.astype(np.int32)))
    assert found["training/log_prob_diff_mean"] == pytest.approx(0.25, abs=1e-5)
    assert found["training/log_prob_diff_max"] == pytest.approx(0.25, abs=1e-5)
    assert found["training/log_prob_diff_staleness"] == 0.0
    assert found["training/staleness/max"] == 1.0


def test_on_policy_samples_have_importance_weight_1(model_path: str) -> None:
    trainer = make_trainer(model_path)
    batch = random_batch(0)
    found = trainer.step(with_log_probs(batch, trainer.log_probs(batch)))
    assert found["training/importance_weight_mean"] == pytest.approx(1.0, abs=1e-6)
    assert found["training/log_prob_diff_max"] == 0.0


def test_several_epochs_and_mini_batches_make_that_many_updates_and_clip(model_path: str) -> None:
    trainer = make_trainer(model_path, PPOConfig(num_epochs=3, num_mini_batches=2), learning_rate=0.05)
    found = trainer.step(random_batch(0))
    assert trainer.state()["counters"].tolist() == [1, 6]
    assert found["actor/pg_clipfrac"] > 0.0
    assert found["actor/ppo_kl"] != 0.0


def test_the_number_of_logical_shards_changes_the_order_of_sums_only(model_path: str) -> None:
    states = []
    for num_logical_shards in (1, 5, 64):
        trainer = make_trainer(model_path, num_logical_shards=num_logical_shards, adam_beta1=0.0)
        trainer.step(random_batch(0))
        states.append(copy_of(trainer.state()))
    for state in states[1:]:
        for name in (name for name in state if name.startswith("first_moment")):
            torch.testing.assert_close(state[name], states[0][name], rtol=1e-4, atol=1e-6)


def test_a_limit_of_tokens_changes_the_order_of_sums_only_and_none_where_it_is_not_met(model_path: str) -> None:
    algorithm = PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.1)
    limits = (16384, 300, 1)
    states = []
    for limit in limits:
        trainer = make_trainer(
            model_path, algorithm, num_logical_shards=1, ppo_max_token_len_per_gpu=limit, adam_beta1=0.0
        )
        trainer.step(random_batch(0))
        states.append(copy_of(trainer.state()))
    assert_same_bits(states[1], states[0])  # 12 samples of at most 24 tokens
    moments = [name for name in states[0] if name.startswith("first_moment")]
    assert not all(torch.equal(states[2][name], states[0][name]) for name in moments)
    for name in moments:
        torch.testing.assert_close(states[2][name], states[0][name], rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_near_float32_and_keeps_float32_weights(model_path: str) -> None:
    exact, rounded = make_trainer(model_path), make_trainer(model_path, dtype="bfloat16")
    batch = random_batch(0)
    difference = np.abs(exact.log_probs(batch) - rounded.log_probs(batch))
    assert 0 < difference.mean() < 0.1
    rounded.step(batch)
    assert {tensor.dtype for tensor in rounded.weights().values()} == {torch.float32}


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_state_restores_bit_for_bit(model_path: str, kl_coefficient: float) -> None:
    algorithm = PPOConfig(kl_coefficient=kl_coefficient, num_mini_batches=2)
    trainer = make_trainer(model_path, algorithm)
    trainer.step(random_batch(0))
    saved = copy_of(trainer.state())
    trainer.step(random_batch(1))
    restored = create_trainer(
        TorchTrainerConfig(learning_rate=1e-3, critic_learning_rate=1e-2, num_logical_shards=5),
        algorithm,
        model_path=model_path,
        seed=0,
        load_weights=False,
    )
    restored.load_state(saved)
    assert restored.num_steps == 1
    assert_same_bits(restored.state(), saved)
    restored.step(random_batch(1))
    assert_same_bits(restored.state(), trainer.state())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(model_path: str) -> None:
    trainer = make_trainer(model_path)
    before, odd = copy_of(trainer.state()), copy_of(trainer.state())
    odd["policy.model.norm.weight"] = torch.zeros(3)
    with pytest.raises(WeightsRefusedError, match=r"policy\.model\.norm\.weight"):
        trainer.load_state(odd)
    del odd["policy.model.norm.weight"]
    with pytest.raises(WeightsRefusedError, match=r"lacks tensor 'policy\.model\.norm\.weight'"):
        trainer.load_state(odd)
    assert_same_bits(trainer.state(), before)


@pytest.mark.parametrize("by", ["the next group", "the next step"])
def test_a_step_that_broke_off_between_two_updates_is_taken_back(
    model_path: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    algorithm = PPOConfig(num_epochs=2, num_mini_batches=2)
    trainer, other = make_trainer(model_path, algorithm), make_trainer(model_path, algorithm)
    for each in (trainer, other):
        each.step(random_batch(0))
    before = copy_of(trainer.state())
    updates = iter(range(3))
    backend: Any = trainer
    apply = backend._backend.update

    def update() -> None:
        if next(updates) == 2:
            raise WorkerFailedError("all-gather failed")
        apply()

    monkeypatch.setattr(backend._backend, "update", update)
    with pytest.raises(WorkerFailedError):
        trainer.step(random_batch(1))
    assert not torch.equal(trainer.state()["policy.model.norm.weight"], before["policy.model.norm.weight"])
    monkeypatch.setattr(backend._backend, "update", apply)
    if by == "the next group":
        trainer.resize(Membership(rank=0, num_ranks=1, host="", port=0, secret="", generation=2))
        assert_same_bits(trainer.state(), before)
    trainer.step(random_batch(1))
    other.step(random_batch(1))
    assert_same_bits(trainer.state(), other.state())


def test_a_copied_state_is_written_after_the_next_step_as_what_safetensors_reads(
    model_path: str, tmp_path: Path
) -> None:
    trainer = make_trainer(model_path, PPOConfig(kl_coefficient=0.1))
    trainer.step(random_batch(0))
    saved = copy_of(trainer.state())
    copied = trainer.copy_state()
    trainer.step(random_batch(1))
    copied.write(tmp_path / "trainer", policy_folder=tmp_path / "policy")
    written = load_file(tmp_path / "trainer" / "state-00001-of-00001.safetensors")
    assert_same_bits({name: tensor.view(saved[name].shape) for name, tensor in written.items()}, saved)
    policy = load_file(tmp_path / "policy" / "model.safetensors")
    assert_same_bits(
        {f"policy.{name}": tensor for name, tensor in policy.items()},
        {name: tensor for name, tensor in saved.items() if name.startswith("policy.")},
    )
    trainer.load_files(tmp_path / "trainer")
    assert_same_bits(trainer.state(), saved)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        copied.write(tmp_path / "file" / "trainer", policy_folder=tmp_path / "policy")


def test_the_last_metrics_are_kept(model_path: str) -> None:
    trainer = make_trainer(model_path)
    assert trainer.last_metrics == {}
    found = trainer.step(random_batch(0))
    assert trainer.last_metrics == found


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(model_path: str, num_epochs: int) -> None:
    trainer = make_trainer(model_path, PPOConfig(num_epochs=num_epochs))
    trainer.step(random_batch(0))
    trainer.weights()["model.norm.weight"][0] = np.inf
    before = copy_of(trainer.state())
    with pytest.raises(NonFiniteLossError, match=r"step 2 is not finite and was not applied: .*pg_loss nan"):
        trainer.step(random_batch(1))
    assert_same_bits(trainer.state(), before)
    assert trainer.num_steps == 1


def test_a_gradient_that_overflows_in_the_second_update_takes_the_first_one_back(model_path: str) -> None:
    trainer = make_trainer(model_path, PPOConfig(num_epochs=2), learning_rate=1e38)
    before = copy_of(trainer.state())
    with pytest.raises(NonFiniteLossError):
        trainer.step(random_batch(0))
    assert_same_bits(trainer.state(), before)


@pytest.mark.parametrize(
    "found",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: ..."),
    ],
    ids=["gpu", "cpu"],
)
def test_running_out_of_memory_names_what_to_lower(
    model_path: str, monkeypatch: pytest.MonkeyPatch, found: Exception
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise found

    trainer = make_trainer(model_path, ppo_max_token_len_per_gpu=4000)
    before = copy_of(trainer.state())
    monkeypatch.setattr(OutputHead, "backward", fail)
    with pytest.raises(UserError, match=r"memory in step 1 .*lower trainer\.ppo_max_token_len_per_gpu.*\(now 4000\)"):
        trainer.step(random_batch(0))
    assert_same_bits(trainer.state(), before)


def test_training_raises_the_reward_for_a_token(model_path: str) -> None:
    """The trainer as a library: sample from its weights, reward one token, step."""
    wanted, num_samples, length = 5, 32, 6
    trainer = make_trainer(model_path, learning_rate=1e-2)
    policy = AutoModelForCausalLM.from_pretrained(model_path)
    generator = torch.Generator().manual_seed(0)
    scores = []
    for step in range(25):
        policy.load_state_dict(trainer.weights(), strict=False)
        policy.tie_weights()
        tokens = torch.randint(VOCABULARY, (num_samples, 2), generator=generator)
        log_probs = []
        for _ in range(length):
            with torch.no_grad():
                distribution = policy(tokens).logits[:, -1].log_softmax(-1)
            chosen = torch.multinomial(distribution.exp(), 1, generator=generator)
            log_probs.append(distribution.gather(-1, chosen))
            tokens = torch.cat([tokens, chosen], dim=1)
        behaviour = torch.cat(log_probs, dim=1).flatten().numpy()
        batch = Batch(
            sample_ids=tuple(f"{step}-{index}" for index in range(num_samples)),
            group_ids=tuple(str(index) for index in range(num_samples)),
            prompt_lengths=np.full(num_samples, 2, dtype=np.int32),
            response_lengths=np.full(num_samples, length, dtype=np.int32),
            token_ids=tokens.flatten().numpy().astype(np.int32),
            loss_mask=np.ones(num_samples * length, dtype=bool),
            log_probs=behaviour,
            behaviour_log_probs=behaviour,
            weight_versions=np.full(num_samples * length, step, dtype=np.int32),
            rewards=(tokens[:, 2:] == wanted).float().mean(dim=1).numpy(),
            finish_reasons=("length",) * num_samples,
        )
        found = trainer.step(batch)
        scores.append(found["critic/score/mean"])
        assert found["training/log_prob_diff_max"] < 1e-4
    assert scores[0] < 0.2
    assert scores[-1] > 0.8


def test_a_gpu_that_is_not_there_is_refused(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda, but torch sees no GPU here"):
        create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=model_path, seed=0, device="cuda")


def test_a_trainer_told_to_stay_on_the_cpu_leaves_the_gpus_alone(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = create_trainer(TorchTrainerConfig(), PPOConfig(), model_path=model_path, seed=0, device="cpu")
    assert {tensor.device.type for tensor in trainer.weights().values()} == {"cpu"}
