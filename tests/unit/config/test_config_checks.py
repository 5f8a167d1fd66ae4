"""Checks across parts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from config_builders import PACED, TWO_TYPES, config_of, problems_of

from rlserve.config.checks import check_parts
from rlserve.config.pool_split import first_roles, render_split
from rlserve.config.tree import RunConfig
from rlserve.manager.roles import Role
from rlserve.pool.gangs import cut_gangs


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"rollout": {"workload": {"median_tokens": 2000}}}, "rollout.workload: is for runs on paced slots only"),
        ({"pool": {"slots": TWO_TYPES, "pacing": {"dilation": 0.5}}}, "pool.pacing: has no effect"),
        ({"pool": {"slots": [PACED[0], TWO_TYPES[0]]}}, "pool.slots: must all be of paced types or none, got cpu-a"),
        ({"pool": {"slots": PACED, "pacing": {"model": "9B"}}}, "pool.pacing.model: no model size is called '9B'"),
        (
            {"pool": {"slots": PACED[:1], "pacing": {"model": "70B"}}},
            "pool.pacing.model: 70B leaves no room",
        ),
    ],
)
def test_paced_slots_and_their_load_go_together(parts: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(**parts)
    assert found.startswith(problem)


def test_paced_slots_need_no_accelerators() -> None:
    assert problems_of(pool={"slots": PACED}, rollout={"workload": {"median_tokens": 2000}}) == []


def test_the_default_pool_is_fine() -> None:
    assert problems_of() == []


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (
            {"pool": {"slots": TWO_TYPES, "num_initial_rollout": 4}},
            "pool.num_initial_rollout: must be between 1 and 3 of the 4 slots (rate_matching), got 4",
        ),
        (
            {"pool": {"slots": TWO_TYPES, "num_initial_rollout": 4}, "manager": {"policy": "static"}},
            "pool.num_initial_rollout: must be between 1 and 3 of the 4 slots (static), got 4",
        ),
        (
            {"manager": {"min_rollout_share": 0.1, "max_rollout_share": 0.2}},
            "manager.max_rollout_share: no split of 4 slots has a rollout share between 0.1 and 0.2 and a slot left to "
            "train",
        ),
        (
            {"manager": {"min_rollout_share": 1, "max_rollout_share": 1}},
            "manager.max_rollout_share: no split of 4 slots has a rollout share between 1.0 and 1.0 and a slot left to "
            "train",
        ),
        (
            {"pool": {"slots": [{"type": "cpu", "count": 2, "prefer": "rollout"}]}},
            "pool.slots: all 2 slots prefer rollout, which leaves none to train; set pool.num_initial_rollout or let "
            "some slots prefer train",
        ),
        (
            {"rollout": {"max_tokens": 64, "engine": {"max_model_len": 64}}},
            "rollout.max_tokens: must be below engine.max_model_len (64) to leave room for a prompt, got 64",
        ),
        (
            {"rollout": {"prompts_per_step": 2, "samples_per_prompt": 2}, "algorithm": {"num_mini_batches": 5}},
            "algorithm.num_mini_batches: must be at most the 4 samples of a step, got 5",
        ),
        (
            {"checkpoint": {"every_steps": 10, "keep_best": 1}},
            "checkpoint.keep_best: needs checkpoints with scores: set checkpoint.every_steps and "
            "evaluation.every_steps, got 1",
        ),
        (
            {"rollout": {"samples_per_prompt": 1}, "algorithm": {"name": "grpo"}},
            "rollout.samples_per_prompt: must be at least 2 with algorithm.name=grpo, which compares the answers to a "
            "prompt, got 1",
        ),
        (
            {
                "rollout": {"engine": {"tensor_parallel_size": 2}},
                "pool": {"slots": [{"type": "cpu", "count": 1}, {"type": "H100", "count": 3}]},
                "launch": {"kind": "cluster"},
            },
            "rollout.engine.tensor_parallel_size: needs two sets of 2 slots of one type, each on one node: one to "
            "train and one to roll out; the pool makes 1, with cpu × 1, H100 × 1 left over",
        ),
        (
            {"launch": {"address": "auto"}},
            "launch.address: has no effect with launch.kind=local: say launch=cluster, got 'auto'",
        ),
    ],
)
def test_parts_that_do_not_fit_together(parts: dict[str, Any], problem: str) -> None:
    assert problems_of(**parts) == [problem]


def test_more_accelerators_than_the_machine_has() -> None:
    pool = {"slots": [{"type": "H100", "count": 4}]}
    (problem,) = problems_of({"H100": 2}, pool=pool)
    assert problem.startswith("pool.slots: asks for H100")
    assert problem.endswith("; ask for what there is (pool=auto), or join a cluster (launch=cluster)")
    assert problems_of({"H100": 4}, pool=pool) == []
    assert problems_of({}, pool=pool, launch={"kind": "cluster"}) == []


@pytest.mark.parametrize(
    ("num_gpus", "num_workers", "num_wanted"), [(1.0, 1, 1), (0.5, 3, 2), (0.4, 3, 2), (2.0, 2, 4)]
)
def test_the_rewards_gpus_are_not_those_of_slots(num_gpus: float, num_workers: int, num_wanted: int) -> None:
    reward = {"function": "m:f", "num_gpus": num_gpus, "num_workers": num_workers}
    (problem,) = problems_of({"H100": 8}, pool={"slots": "auto"}, reward=reward)
    assert problem == (
        f"reward.num_gpus: needs {num_wanted} of the machine's 8 GPUs for {num_workers} reward workers, but the slots "
        f"take 8: leave some to the reward by naming fewer slots in pool.slots, got {num_gpus:g}"
    )
    enough = {"slots": [{"type": "H100", "count": 8 - num_wanted}]}
    assert problems_of({"H100": 8}, pool=enough, reward=reward) == []
    assert problems_of({}, pool={"slots": "auto"}, launch={"kind": "cluster"}, reward=reward) == []
    (problem,) = problems_of({}, pool={"slots": "auto"}, reward=reward)
    assert problem.endswith(f"but the slots take 0: 0 computes on the CPU, got {num_gpus:g}")


def test_a_cluster_that_will_be_discovered_is_not_judged() -> None:
    assert problems_of(pool={"slots": "auto", "num_initial_rollout": 99}, launch={"kind": "cluster"}) == []


ONE_SLOT = {"slots": [{"type": "cpu", "count": 1}], "placement": "colocated"}


def test_one_slot_is_enough_where_it_has_both_roles_in_turn() -> None:
    config = config_of(pool=ONE_SLOT)
    assert check_parts(config, {}) == ()
    assert first_roles(config, cut_gangs(config.pool.slots, 1).gangs) == {"cpu/0": Role.TRAIN}  # type: ignore[arg-type]
    assert render_split(config, {}).splitlines()[0] == (
        "slots: 1 cpu; all of them roll out and train in turn (pool.placement=colocated)"
    )


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"pool": {"slots": TWO_TYPES, "colocated": {"batches_per_turn": 2}}}, "pool.colocated: is for"),
        ({"pool": {"slots": PACED, "placement": "colocated"}}, "pool.placement: must be elastic or separate on paced"),
        (
            {"pool": ONE_SLOT, "rollout": {"engine": {"tensor_parallel_size": 2}}},
            "rollout.engine.tensor_parallel_size: must be 1 with pool.placement=colocated, got 2",
        ),
        ({"pool": {**ONE_SLOT, "num_initial_rollout": 1}}, "pool.num_initial_rollout: has no effect"),
        (
            {"pool": {**ONE_SLOT, "colocated": {"batches_per_turn": 3}}, "rollout": {"max_staleness": 1}},
            "pool.colocated.batches_per_turn: must be at most rollout.max_staleness + 1 = 2",
        ),
        (
            {"pool": {**ONE_SLOT, "colocated": {"rollout_time_share": 0.7}}, "rollout": {"max_staleness": 0}},
            "pool.colocated.rollout_time_share: has no effect with rollout.max_staleness=0",
        ),
        (
            {
                "pool": {**ONE_SLOT, "colocated": {"rollout_memory_share": 0.7}},
                "rollout": {"engine": {"kv_cache_bytes": 1000}},
            },
            "rollout.engine.kv_cache_bytes: must be null beside pool.colocated.rollout_memory_share",
        ),
    ],
)
def test_what_does_not_go_together_with_both_roles_in_turn(parts: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(**parts)
    assert found.startswith(problem)


def test_deterministic_training_needs_engines_that_compute_alike() -> None:
    engine = {"dtype": "float32"}
    assert problems_of(trainer={"deterministic": True}, rollout={"engine": engine}) == []
    for name, value, choice in (
        ("dtype", "bfloat16", "float32"),
        ("kv_cache_dtype", "int8", "auto"),
        ("weight_dtype", "int8", "auto"),
        ("attention_backend", "torch", "auto or cpu"),
        ("tensor_parallel_size", 2, "1"),
        ("block_size", 8, "16 or 32 or 64 or 128"),
    ):
        found = problems_of(trainer={"deterministic": True}, rollout={"engine": engine | {name: value}})
        message = f"must be {choice} with trainer.deterministic=true, got {value}"
        assert found == [f"rollout.engine.{name}: {message}"]


@pytest.mark.parametrize(
    ("trainer", "setting"),
    [({"sharding": "full"}, "sharding=full"), ({"backend": "deepspeed", "zero_stage": 3}, "zero_stage=3")],
)
def test_networks_that_are_cut_up_are_not_for_engines_beside_them(trainer: dict[str, Any], setting: str) -> None:
    assert problems_of(trainer=trainer) == []
    (problem,) = problems_of(trainer=trainer, pool={"placement": "colocated"})
    assert problem.startswith(f"pool.placement: must be elastic or separate with trainer.{setting}, where engines")


def test_deterministic_training_is_not_for_gpus() -> None:
    parts = {"trainer": {"deterministic": True}, "rollout": {"engine": {"dtype": "float32"}}}
    (problem,) = problems_of({"H100": 2}, pool={"slots": "auto"}, **parts)
    assert problem.startswith("trainer.deterministic: is only for slots that are CPU processes")
    assert problem.endswith("got H100")


@pytest.mark.parametrize(
    ("discovered", "parts", "is_fine"),
    [
        ({}, {}, False),
        ({}, {"pool": {"slots": "auto"}}, False),
        ({"H100": 2}, {"pool": {"slots": "auto"}}, True),
        ({}, {"pool": {"slots": PACED}}, False),
        ({}, {"pool": {"slots": TWO_TYPES, "placement": "colocated"}}, True),
        ({}, {"pool": {"slots": "auto"}, "launch": {"kind": "cluster"}}, True),
    ],
)
def test_nccl_is_for_gpus_and_gloo_for_all(discovered: dict[str, int], parts: dict[str, Any], is_fine: bool) -> None:
    found = problems_of(discovered, weights={"transport": "nccl"}, **parts)
    assert [problem for problem in found if problem.startswith("weights.backend: must be gloo")] == found
    assert (found == []) == is_fine
    assert problems_of(discovered, weights={"transport": "nccl", "backend": "gloo"}, **parts) == []


@pytest.mark.parametrize(
    ("discovered", "parts", "message"),
    [
        ({}, {}, "slots that are GPUs, and cpu-a is a CPU process: say weights=object_store, got cuda_ipc"),
        ({}, {"pool": {"slots": "auto"}}, "slots that are GPUs, and cpu is a CPU process"),
        ({}, {"pool": {"slots": PACED}}, "slots that are GPUs, and paced-H100 is a CPU process"),
        (
            {"H100-MIG-1g.10gb": 4},
            {"pool": {"slots": "auto"}},
            "slots that are whole GPUs, and H100-MIG-1g.10gb",
        ),
        ({"H100": 2}, {"pool": {"slots": "auto"}}, None),
        ({}, {"pool": {"slots": TWO_TYPES, "placement": "colocated"}}, None),
        ({}, {"pool": {"slots": "auto"}, "launch": {"kind": "cluster"}}, None),
    ],
)
def test_cuda_ipc_is_for_whole_gpus(discovered: dict[str, int], parts: dict[str, Any], message: str | None) -> None:
    found = problems_of(discovered, weights={"transport": "cuda_ipc"}, **parts)
    assert len(found) == (message is not None)
    assert all(problem.startswith(f"weights.transport: is only for {message}") for problem in found)


def test_no_field_of_the_tree_can_hold_a_secret() -> None:
    def names(cls: Any) -> list[str]:
        found = []
        for field in dataclasses.fields(cls):
            value = getattr(config, field.name, None) if cls is RunConfig else None
            found += [field.name] + (names(type(value)) if dataclasses.is_dataclass(value) else [])
        return found

    config = config_of()
    suspicious = [name for name in names(RunConfig) if name.endswith(("_key", "password", "secret", "_token"))]
    assert suspicious == []


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (
            {"algorithm": {"name": "grpo"}, "trainer": {"critic_model_path": "org/reward"}},
            "trainer.critic_model_path: must be null with algorithm.name=grpo, which has no critic, got org/reward",
        ),
        (
            {"algorithm": {"name": "grpo"}, "trainer": {"critic_head_learning_rate": 0.1}},
            "trainer.critic_head_learning_rate: must be null with algorithm.name=grpo, which has no critic, got 0.1",
        ),
        (
            {"algorithm": {"name": "grpo"}, "trainer": {"critic_trunk": "shared"}},
            "trainer.critic_trunk: must be separate with algorithm.name=grpo, which has no critic, got shared",
        ),
        (
            {"algorithm": {"name": "grpo"}, "trainer": {"critic_warmup_steps": 5}},
            "trainer.critic_warmup_steps: must be 0 with algorithm.name=grpo, which has no critic, got 5",
        ),
        (
            {
                "num_steps": 10,
                "trainer": {"learning_rate_schedule": "linear", "num_warmup_steps": 6, "critic_warmup_steps": 4},
            },
            "trainer.num_schedule_steps: must be more than the 10 of critic_warmup_steps and num_warmup_steps, after "
            "which learning rates fall, got 10",
        ),
    ],
)
def test_learning_rates_that_make_no_sense(parts: dict[str, Any], problem: str) -> None:
    assert problems_of(**parts) == [problem]


@pytest.mark.parametrize(("given", "expected"), [(None, 60), (7, 7)])
def test_learning_rates_fall_over_all_optimizer_steps_of_the_run_unless_said(given: int | None, expected: int) -> None:
    config = config_of(
        num_steps=5,
        algorithm={"name": "ppo", "num_epochs": 3, "num_mini_batches": 4},
        trainer={"learning_rate_schedule": "cosine", "num_schedule_steps": given},
    )
    assert config.scheduled_trainer.num_schedule_steps == expected


def test_there_is_a_reward_or_an_environment_that_gives_one() -> None:
    environment = {"name": "game.py:Game"}
    assert problems_of(reward={}) == [
        "reward.function: name a reward: reward.function, reward.url, reward.model_path or reward.parts; or an "
        "environment that gives rewards (environment.name)"
    ]
    assert problems_of(reward={}, environment=environment) == []
    assert problems_of(environment=environment) == []
    paced = {"pool": {"slots": PACED}, "environment": environment}
    assert [problem for problem in problems_of(**paced) if problem.startswith("environment.name: is not for slots")]


def test_an_environment_of_verifiers_brings_its_own_prompts() -> None:
    game = "verifiers:game"
    chat = {"path": game, "apply_chat_template": True}
    assert problems_of(reward={}, environment={"name": game}, data=chat) == []
    assert problems_of(reward={}, environment={"name": game}, data={**chat, "system_prompt": "be kind"}) == [
        "data.system_prompt: is not for verifiers:game, which has its own; see environment.options"
    ]
    assert problems_of(reward={}, environment={"name": game}, data={"path": "d.jsonl"}) == [
        "data.path: must be verifiers:game (data=verifiers): its rows are its prompts, got d.jsonl",
        "data.apply_chat_template: must be true for verifiers:game, whose prompts are chat messages",
    ]
    assert problems_of(data=chat) == [
        "data.path: is the data set of an environment: set environment.name=verifiers:game"
    ]
