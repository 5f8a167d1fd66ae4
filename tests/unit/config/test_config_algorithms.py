"""The recipes of ``conf/algorithm``: what each name stands for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlserve.config import load
from rlserve.trainers import (
    AlgorithmConfig,
    GRPOConfig,
    OPOConfig,
    PPOConfig,
    ReinforcePlusPlusBaselineConfig,
    ReinforcePlusPlusConfig,
    ReMaxConfig,
    RewardModelConfig,
    RLOOConfig,
    RolloutCorrectionConfig,
    SFTConfig,
)

ROOT = Path(__file__).parents[3]
RECIPES: dict[str, AlgorithmConfig] = {
    "ppo": PPOConfig(),
    "vc_ppo": PPOConfig(critic_gae_lambda=1.0),
    "vapo": PPOConfig(
        critic_gae_lambda=1.0, length_adaptive_alpha=0.05, clip_ratio_high=0.28, positive_nll_coefficient=0.1
    ),
    "grpo": GRPOConfig(),
    "dr_grpo": GRPOConfig(scale_rewards="none", loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=96.0),
    "dapo": GRPOConfig(loss_agg_mode="token-mean", clip_ratio_high=0.28, overlong_max_length=96),
    "lite_ppo": GRPOConfig(scale_rewards="batch", loss_agg_mode="token-mean"),
    "gspo": GRPOConfig(loss_mode="gspo", clip_ratio_low=3e-4, clip_ratio_high=4e-4, num_mini_batches=4),
    "gmpo": GRPOConfig(loss_mode="geo_mean", clip_ratio_low=0.4, clip_ratio_high=0.4, num_mini_batches=4),
    "cispo": GRPOConfig(
        loss_mode="cispo",
        scale_rewards="batch",
        loss_agg_mode="token-mean",
        clip_ratio_low=1.0,
        clip_ratio_high=4.0,
        num_mini_batches=4,
    ),
    "sapo": GRPOConfig(loss_mode="sapo", num_mini_batches=4),
    "clip_cov": GRPOConfig(loss_mode="clip_cov", loss_agg_mode="token-mean", num_mini_batches=4),
    "kl_cov": GRPOConfig(loss_mode="kl_cov", loss_agg_mode="token-mean", num_mini_batches=4),
    "rloo": RLOOConfig(kl_coefficient=0.03),
    "remax": ReMaxConfig(kl_coefficient=0.05, gamma=0.99),
    "opo": OPOConfig(),
    "reinforce_plus_plus": ReinforcePlusPlusConfig(kl_coefficient=0.01),
    "reinforce_plus_plus_baseline": ReinforcePlusPlusBaselineConfig(kl_loss_coefficient=0.01, kl_loss_type="k2"),
    "sft": SFTConfig(),
    "reward_model": RewardModelConfig(),
}
"""In a run whose answers have at most 96 tokens."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_stands_for_its_papers_recipe(name: str) -> None:
    loaded = load(str(ROOT / "conf/rlhf.yaml"), [f"algorithm={name}"], discovered={})
    assert loaded.config.algorithm == RECIPES[name]


@pytest.mark.parametrize("name", ["vc_ppo", "vapo"])
def test_a_recipe_with_a_critic_lets_it_warm_up(name: str) -> None:
    loaded = load(str(ROOT / "conf/rlhf.yaml"), [f"algorithm={name}"], discovered={})
    assert loaded.config.trainer.critic_warmup_steps == 50
    shorter = [f"algorithm={name}", "trainer.critic_warmup_steps=5"]
    assert load(str(ROOT / "conf/rlhf.yaml"), shorter, discovered={}).config.trainer.critic_warmup_steps == 5


def test_a_greedy_answer_is_asked_for_where_the_algorithm_compares_with_it() -> None:
    number = {
        name: load(
            str(ROOT / "conf/rlhf.yaml"), [f"algorithm={name}", "rollout.samples_per_prompt=2"], discovered={}
        ).config.num_answers_per_prompt
        for name in ("rloo", "remax")
    }
    assert number == {"rloo": 2, "remax": 3}


CORRECTIONS: dict[str, RolloutCorrectionConfig] = {
    "decoupled_token_is": RolloutCorrectionConfig(),
    "decoupled_seq_is": RolloutCorrectionConfig(rollout_is="sequence"),
    "sequence_mask": RolloutCorrectionConfig(rollout_is="sequence", rollout_is_mode="mask", rollout_is_threshold=3.0),
    "icepop": RolloutCorrectionConfig(rollout_is_mode="mask", rollout_is_threshold_lower=0.5, rollout_is_threshold=5.0),
    "decoupled_geo_rs": RolloutCorrectionConfig(rollout_is=None, rollout_rs="seq_mean_k1", rollout_rs_threshold=0.001),
    "bypass_ppo_clip": RolloutCorrectionConfig(rollout_is=None, bypass_mode=True),
    "disabled": RolloutCorrectionConfig(rollout_is=None),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_preset_of_the_correction_goes_with_any_algorithm(name: str) -> None:
    choices = ["algorithm=dapo", f"algorithm/rollout_correction={name}"]
    loaded = load(str(ROOT / "conf/rlhf.yaml"), choices, discovered={})
    assert loaded.config.algorithm == replace(RECIPES["dapo"], rollout_correction=CORRECTIONS[name])


def test_every_recipe_is_known_and_described() -> None:
    names = {path.stem for path in (ROOT / "conf/algorithm").glob("*.yaml")}
    assert names == set(RECIPES)
    presets = {path.stem for path in (ROOT / "conf/algorithm/rollout_correction").glob("*.yaml")}
    assert presets == set(CORRECTIONS)
    described = "".join((ROOT / f"docs/{page}.md").read_text(encoding="utf-8") for page in ("algorithms", "jobs"))
    choices = [f"algorithm={name}" for name in names] + [f"algorithm/rollout_correction={name}" for name in presets]
    assert [choice for choice in choices if f"`{choice}`" not in described] == []
