"""Checks across parts, of references, and the split that they rest on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.config.checks import check_parts
from rlserve.config.pool_split import first_roles, render_split
from rlserve.config.references import check_references
from rlserve.config.remarks import remarks_on_split
from rlserve.config.tree import RunConfig
from rlserve.config.validation import validate
from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.policies.base import Admission, GangFigures, GangView, Observation
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.queue_threshold import QueueThresholdPolicy
from rlserve.manager.roles import Role
from rlserve.pool.gangs import cut_gangs

TWO_TYPES = [{"type": "cpu-a", "count": 2, "prefer": "train"}, {"type": "cpu-b", "count": 2, "prefer": "rollout"}]


def config_of(**parts: Any) -> RunConfig:
    smallest = {"model": {"path": "a/b"}, "data": {"path": "a/b"}, "reward": {"function": "m:f"}}
    config, problems = validate(RunConfig, smallest | {"pool": {"slots": TWO_TYPES}} | parts)
    assert config is not None, problems
    return config


def problems_of(discovered: dict[str, int] | None = None, **parts: Any) -> list[str]:
    return [str(problem) for problem in check_parts(config_of(**parts), discovered or {})]


PACED = [{"type": "paced-H100", "count": 2}, {"type": "paced-H200", "count": 2}]


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


def reachable_rollout(manager: QueueThresholdConfig, num_slots: int, num_rollout: int, queue_length: int) -> int:
    """Rollout slots once the policy has nothing more to move, the queue staying as it is."""
    policy = QueueThresholdPolicy(manager)
    roles = [Role.ROLLOUT if index < num_rollout else Role.TRAIN for index in range(num_slots)]
    for _ in range(num_slots):
        figures = GangFigures(memory_bandwidth_gb_s=1, flops_tflops=1)
        gangs = tuple(
            GangView(id=str(index), type="cpu", figures=figures, role=roles[index]) for index in range(num_slots)
        )
        observation = Observation(
            time_s=0,
            queue_length=queue_length,
            num_buffered=0,
            num_in_flight=0,
            trainer_waiting=False,
            num_steps_left=None,
            admission=Admission(
                prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64
            ),
            measured=Measurements(),
            gangs=gangs,
            legal_trainer_sizes=tuple(range(1, num_slots + 1)),
            moving=False,
            last_move_end_s=None,
        )
        for move in policy.decide(observation, None)[0].moves:
            roles[int(move.gang_id)] = move.to
    return roles.count(Role.ROLLOUT)


@given(st.integers(2, 24), st.integers(0, 100), st.integers(1, 100))
def test_the_bounds_are_those_that_the_policy_keeps(num_slots: int, low_percent: int, high_percent: int) -> None:
    low_percent, high_percent = sorted((low_percent, high_percent))
    manager = QueueThresholdConfig(min_rollout_share=low_percent / 100, max_rollout_share=max(high_percent, 1) / 100)
    fewest, most = rollout_bounds(manager, num_slots)
    if fewest <= most:
        assert reachable_rollout(manager, num_slots, fewest, manager.queue_high + 1) == most
        assert reachable_rollout(manager, num_slots, most, manager.queue_low - 1) == fewest


def test_the_split_as_a_table() -> None:
    assert render_split(config_of(), {}) == (
        "group  type   count  prefers  starts as\n"
        "0      cpu-a  2      train    train\n"
        "1      cpu-b  2      rollout  rollout\n"
        "rollout slots: 2 of 4 at the start; at least 1, at most 3 (rate_matching)\n"
        "in flight and buffered: at most 32 prompt groups = 256 samples ((max_staleness 1 + 1) x prompts_per_step 16)\n"
    )


def test_a_group_that_is_divided_and_a_split_that_stays() -> None:
    config = config_of(pool={"slots": "auto", "num_initial_rollout": 1}, manager={"policy": "static"})
    lines = render_split(config, {}).splitlines()
    assert lines[1] == "0      cpu   4      -        3 train, 1 rollout"
    assert lines[2] == "rollout slots: 1 of 4 at the start; never moved (static)"


def test_separate_roles_are_those_of_the_static_policy_whatever_the_manager() -> None:
    """Its shares are no bounds, and nothing moves."""
    slots = [{"type": "cpu", "count": 10}]
    keys: dict[str, Any] = {
        "manager": {"policy": "queue_threshold", "min_rollout_share": 0.3, "queue_high": 8, "queue_low": 3}
    }
    config = config_of(pool={"slots": slots, "num_initial_rollout": 1, "placement": "separate"}, **keys)
    assert check_parts(config, {}) == ()
    assert render_split(config, {}).splitlines()[2] == "rollout slots: 1 of 10 at the start; never moved (static)"
    elastic = config_of(pool={"slots": slots, "num_initial_rollout": 1}, **keys)
    assert [problem.key for problem in check_parts(elastic, {})] == ["pool.num_initial_rollout"]


ONE_SLOT = {"slots": [{"type": "cpu", "count": 1}], "placement": "colocated"}


def test_one_slot_is_enough_where_it_has_both_roles_in_turn() -> None:
    config = config_of(pool=ONE_SLOT)
    assert check_parts(config, {}) == ()
    assert first_roles(config.pool, cut_gangs(config.pool.slots, 1).gangs) == {"cpu/0": Role.TRAIN}  # type: ignore[arg-type]
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


def test_the_split_in_gangs() -> None:
    slots = [{"type": "cpu-a", "count": 4, "prefer": "train"}, {"type": "cpu-b", "count": 3, "prefer": "rollout"}]
    config = config_of(pool={"slots": slots}, rollout={"engine": {"tensor_parallel_size": 2}})
    lines = render_split(config, {}).splitlines()
    assert lines[1:5] == [
        "0      cpu-a  4      train    train",
        "1      cpu-b  3      rollout  2 rollout, 1 left over",
        "rollout slots: 2 of 6 at the start; at least 2, at most 4 (rate_matching)",
        "gangs: 3 of 2 slots each (rollout.engine.tensor_parallel_size)",
    ]
    (remark,) = remarks_on_split(config, cut_gangs(config.pool.slots, 2))
    assert str(remark).startswith("pool.slots: cpu-b × 1 not used: rollout.engine.tensor_parallel_size=2 takes 2 slots")


def test_a_cluster_whose_slots_are_not_known_yet() -> None:
    config = config_of(pool={"slots": "auto"}, launch={"kind": "cluster"})
    assert render_split(config, {}).startswith("slots: those of the cluster, found at launch\n")


# References


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


def references(**values: str) -> list[str]:
    return [
        str(problem) for problem in check_references({key.replace("__", "."): value for key, value in values.items()})
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_references_that_are_fine(folder: Path) -> None:
    (folder / "score.py").write_text("raise AssertionError('imported')")
    (folder / "data.jsonl").write_text("")
    assert (
        references(
            model__path="Qwen/Qwen3-0.6B",
            model__tokenizer_path=str(folder),
            data__path="data.jsonl",
            data__held_out_path="gsm8k",
            reward__function="score.py:score",
            reward__model_path="org/reward-model",
        )
        == []
    )
    assert references(model__path="builtin:addition", reward__function="package.module:function") == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.path", "/nowhere", "no such folder, and no name on the hub (org/name): '/nowhere'"),
        ("model.path", "", "must not be empty"),
        ("model.path", "builtin:chess", "there is no builtin:chess; there is: builtin:addition, builtin:digits"),
        ("model.path", "file.txt", "file.txt is a file, and no model: name the folder that holds its config.json"),
        ("model.tokenizer_path", "builtin:addition", "no builtin model can stand here, got 'builtin:addition'"),
        (
            "data.path",
            "data/train.jsonl",
            "no such file or folder, and no data set's name on the hub: 'data/train.jsonl'",
        ),
        ("data.path", "builtin:chess", "there is no builtin:chess; there is: builtin:addition, builtin:digits"),
        ("reward.function", "score", "must be module:function or path/to/file.py:function, got 'score'"),
        ("reward.function", "a b:score", "must be module:function or path/to/file.py:function, got 'a b:score'"),
        ("reward.function", "module:", "must be module:function or path/to/file.py:function, got 'module:'"),
        ("reward.function", "no/such.py:score", "no such file: 'no/such.py'"),
    ],
)
def test_references_that_lead_nowhere(folder: Path, key: str, value: str, message: str) -> None:
    (folder / "file.txt").write_text("")
    assert [str(problem) for problem in check_references({key: value})] == [f"{key}: {message}"]


def test_a_folder_that_is_no_model_and_an_architecture_that_is_not_supported(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "gpt2").mkdir()
    (folder / "gpt2/config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    (empty,) = references(model__path="empty")
    assert "config.json" in empty
    (unsupported,) = references(model__path="gpt2")
    for name in ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert name in unsupported


def test_values_that_are_not_text_are_left_to_others() -> None:
    assert check_references({"model.path": 3, "data.path": None}) == ()


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
