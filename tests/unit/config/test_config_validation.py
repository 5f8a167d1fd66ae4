"""From plain values to the frozen tree: what is accepted, and the exact words for what is not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator

from rlserve.config.keys import hints_of, named_of, nested_dataclasses, variants_of
from rlserve.config.tree import RunConfig
from rlserve.config.validation import validate
from rlserve.errors import check_fields
from rlserve.pool.config import SlotGroupConfig
from rlserve.trainers import AlgorithmConfig, GRPOConfig, PPOConfig

SMALLEST: dict[str, Any] = {
    "model": {"path": "org/model"},
    "data": {"path": "org/data"},
    "reward": {"function": "my.module:score"},
}


def problems_of(**parts: Any) -> list[str]:
    config, problems = validate(RunConfig, SMALLEST | parts)
    assert (config is None) == bool(problems)
    return [str(problem) for problem in problems]


def test_defaults_of_the_code_fill_what_is_not_given() -> None:
    config, problems = validate(RunConfig, SMALLEST)
    assert problems == ()
    assert config is not None
    assert config.num_steps == RunConfig.num_steps
    assert config.data.prompt_field == "prompt"
    assert config.pool.slots == "auto"


def test_lists_become_tuples_of_dataclasses() -> None:
    config, _ = validate(RunConfig, SMALLEST | {"pool": {"slots": [{"type": "cpu-a", "count": 2}]}})
    assert config is not None
    assert config.pool.slots == (SlotGroupConfig(type="cpu-a", count=2),)


@pytest.mark.parametrize("written", [1, 1.0, "1", "1e0", "1.0e+0"])
def test_a_float_may_be_written_as_an_integer_or_as_text(written: object) -> None:
    config, problems = validate(RunConfig, SMALLEST | {"trainer": {"learning_rate": written}})
    assert problems == ()
    assert config is not None
    assert type(config.trainer.learning_rate) is float
    assert config.trainer.learning_rate == 1.0


def test_one_text_is_a_list_of_one() -> None:
    config, _ = validate(RunConfig, SMALLEST | {"rollout": {"stop": "END"}, "tracking": {"wandb": {"tags": 5}}})
    assert config is not None
    assert (config.rollout.stop, config.tracking.wandb.tags) == (("END",), ("5",))


def test_a_number_in_the_place_of_text_is_its_spelling_or_else_its_usual_one() -> None:
    spellings = {"name": "007", "tracking.wandb.tags.1": "1e5"}
    parts = {"name": 7, "output_dir": 2026, "tracking": {"wandb": {"tags": ["a", 1e5, True], "group": 1.5}}}
    config, problems = validate(RunConfig, SMALLEST | parts, spellings.get)
    assert config is not None, problems
    assert (config.name, config.output_dir) == ("007", "2026")
    assert config.tracking.wandb.tags == ("a", "1e5", "true")
    assert config.tracking.wandb.group == "1.5"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"trainer": {"learning_rte": 1}}, "trainer.learning_rte: unknown key, did you mean trainer.learning_rate?"),
        ({"gamma": 1}, "gamma: unknown key, did you mean algorithm.gamma?"),
        (
            {"weights": {"zzz": 1}},
            "weights.zzz: unknown key; valid keys: transport, timeout_s, anchor_every, canary",
        ),
        ({"weights": {7: 1}}, "weights.7: unknown key; valid keys: transport, timeout_s, anchor_every, canary"),
        ({"model": {}}, "model.path: must be given"),
        ({"num_steps": "yes"}, "num_steps: must be a whole number, got 'yes'"),
        ({"num_steps": 3.0}, "num_steps: must be a whole number, got 3.0"),
        ({"num_steps": True}, "num_steps: must be a whole number, got true"),
        ({"num_steps": 0}, "num_steps: must be at least 1, got 0"),
        ({"tracking": {"tensorboard": "yes"}}, "tracking.tensorboard: must be true or false, got 'yes'"),
        ({"tracking": {"tensorboard": 1}}, "tracking.tensorboard: must be true or false, got 1"),
        ({"tracking": {"wandb": None}}, "tracking.wandb: must be a mapping of keys, got null"),
        ({"tracking": {"wandb": {"tags": [None]}}}, "tracking.wandb.tags.0: must be text, got null"),
        ({"rollout": {"stop": None}}, "rollout.stop: must be a list, got null"),
        ({"name": []}, "name: must be text or null, got a list"),
        ({"rollout": {"max_tokens": None}}, "rollout.max_tokens: must be a whole number, got null"),
        ({"rollout": {"max_tokens": [1]}}, "rollout.max_tokens: must be a whole number, got a list"),
        ({"rollout": {"engine": {"block_size": 0}}}, "rollout.engine.block_size: must be at least 1, got 0"),
        (
            {"rollout": {"engine": {"num_blocks": "few"}}},
            "rollout.engine.num_blocks: must be a whole number or null, got 'few'",
        ),
        ({"trainer": {"learning_rate": "fast"}}, "trainer.learning_rate: must be a number, got 'fast'"),
        ({"trainer": {"learning_rate": True}}, "trainer.learning_rate: must be a number, got true"),
        ({"trainer": {"learning_rate": float("inf")}}, "trainer.learning_rate: must be a number, got inf"),
        ({"trainer": {"dtype": "bf16"}}, "trainer.dtype: must be one of float32, bfloat16, got 'bf16'"),
        ({"pool": {"slots": "all"}}, "pool.slots: must be auto or a list, got 'all'"),
        ({"pool": {"slots": [{"type": "a"}]}}, "pool.slots.0.count: must be given"),
        (
            {"pool": {"slots": []}},
            "pool.slots: must hold at least 1 slot, got ()",
        ),
        (
            {"reward": {"function": "m:f", "model_path": "a/b"}},
            "reward.function: reward.function cannot stand beside reward.model_path: set one of the two to null, "
            "got 'm:f'",
        ),
        ({"model": "org/model"}, "model: must be a mapping of keys, got 'org/model'"),
        (
            {"reward": {"function": "m:f", "parts": {"a": {"function": "m:f"}}}},
            "reward.function: function=m:f cannot stand beside reward.parts, got 'm:f'",
        ),
        (
            {"reward": {"parts": {"a": {"weight": 2.0}}}},
            "reward.parts.a.function: name a reward: function, url or model_path, got None",
        ),
        (
            {"reward": {"parts": {"a": {"function": "m:f", "model_path": "b/c"}}}},
            "reward.parts.a.function: function cannot stand beside model_path: set one of the two to null, got 'm:f'",
        ),
        (
            {"reward": {"parts": {"a": {"function": "m:f", "wieght": 2.0}}}},
            "reward.parts.a.wieght: unknown key, did you mean reward.parts.a.weight?",
        ),
        (
            {"reward": {"parts": {"a": {"function": "m:f", "weight": "much"}}}},
            "reward.parts.a.weight: must be a number, got 'much'",
        ),
        ({"reward": {"parts": {"a": "m:f"}}}, "reward.parts.a: must be a mapping of keys, got 'm:f'"),
    ],
)
def test_each_problem_in_words(parts: dict[str, Any], problem: str) -> None:
    assert problems_of(**parts) == [problem]


def test_everything_wrong_is_said_at_once() -> None:
    problems = problems_of(
        model={"pth": "x"},
        num_steps=0,
        seed="a",
        data={"path": None, "num_held_out": 0},
        trainer={"learning_rte": 1, "weight_decay": -1},
        pool={"slots": [{"type": " ", "count": 0}, {"count": 2}], "switch_timeout_s": 0},
        foo=1,
    )
    assert problems == [
        "foo: unknown key; valid keys: " + ", ".join(field.name for field in dataclasses.fields(RunConfig)),
        "model.pth: unknown key, did you mean model.path?",
        "model.path: must be given",
        "data.path: must be text, got null",
        "data.num_held_out: must be at least 1, got 0",
        "seed: must be a whole number, got 'a'",
        "num_steps: must be at least 1, got 0",
        "trainer.learning_rte: unknown key, did you mean trainer.learning_rate?",
        "trainer.weight_decay: must be at least 0, got -1.0",
        "pool.slots.0.type: must name a type, got ' '",
        "pool.slots.0.count: must be at least 1, got 0",
        "pool.slots.1.type: must be given",
        "pool.switch_timeout_s: must be above 0, got 0.0",
    ]


def _paths(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(values, dict):
        return []
    return [(*path, name) for name in values] + [
        found for name, value in values.items() for found in _paths(value, (*path, name))
    ]


FULL = dataclasses.asdict(validate(RunConfig, SMALLEST)[0])  # type: ignore[call-overload]
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.just({"x": {"y": 1}})
)


@given(st.lists(st.tuples(st.sampled_from(_paths(FULL)), JUNK), min_size=1, max_size=6))
def test_no_value_anywhere_raises_or_passes_as_another_type(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    values = _deep_copy(FULL)
    for path, junk in changes:
        parent = values
        for name in path[:-1]:
            parent = parent[name] if isinstance(parent.get(name), dict) else parent.setdefault(name + "_", {})
        parent[path[-1]] = copy.deepcopy(junk)  # strategies give one object again, which a later path may lead into
    config, problems = validate(RunConfig, values)
    if config is None:
        assert all(problem.key and problem.message for problem in problems)
    else:
        rebuilt, _ = validate(RunConfig, dataclasses.asdict(config))
        assert rebuilt == config


@given(st.sampled_from(_paths(FULL)), st.data())
def test_every_misspelt_key_is_reported_with_the_right_one(path: tuple[str, ...], data: st.DataObject) -> None:
    """One letter left out of any key of the tree."""
    name = path[-1]
    position = data.draw(st.integers(0, len(name) - 1))
    typo = name[:position] + name[position + 1 :]
    values = _deep_copy(FULL)
    parent = values
    for part in path[:-1]:
        parent = parent[part]
    if not typo or typo in parent:
        return
    parent[typo] = parent.pop(name)
    _, problems = validate(RunConfig, values)
    messages = {problem.key: problem.message for problem in problems}
    assert f"did you mean {'.'.join(path)}?" in messages[".".join([*path[:-1], typo])]


def _deep_copy(values: Any) -> Any:
    return {name: _deep_copy(value) for name, value in values.items()} if isinstance(values, dict) else values


def test_a_mapping_has_keys_of_the_users_own() -> None:
    arguments = {"enable_thinking": False, "tools": [{"name": "add"}]}
    data = {"path": "org/data", "apply_chat_template": True, "chat_template_kwargs": arguments}
    config, problems = validate(RunConfig, SMALLEST | {"data": data})
    assert problems == ()
    assert config is not None
    assert config.data.chat_template_kwargs == arguments
    assert problems_of(data={"path": "org/data", "chat_template_kwargs": [1]}) == [
        "data.chat_template_kwargs: must be a mapping of keys of your own, got a list"
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"name": "grpo", "clip_ratio_low": 0.1}, GRPOConfig(clip_ratio_low=0.1)),
        ({"name": "ppo", "gae_lambda": 1}, PPOConfig(gae_lambda=1.0)),
        ({"gae_lambda": 1}, PPOConfig(gae_lambda=1.0)),
        ({}, PPOConfig()),
    ],
)
def test_an_algorithm_is_chosen_by_its_name(given: dict[str, object], expected: AlgorithmConfig) -> None:
    config, problems = validate(RunConfig, SMALLEST | {"algorithm": given})
    assert problems == ()
    assert config is not None
    assert config.algorithm == expected


ALGORITHMS = (
    *("ppo", "grpo", "rloo", "remax", "opo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"),
    *("sft", "reward_model"),
)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"name": "a2c"}, "algorithm.name: must be one of " + ", ".join(ALGORITHMS) + ", got 'a2c'"),
        ({"name": []}, "algorithm.name: must be one of " + ", ".join(ALGORITHMS) + ", got a list"),
        ({"name": "grpo", "clip_ratio_low": 0}, "algorithm.clip_ratio_low: must be above 0 and at most 1, got 0.0"),
        ({"name": "grpo", "kl_loss_coeficient": 1}, "algorithm.kl_loss_coeficient: unknown key, did you mean "),
        (3, "algorithm: must be a mapping of keys, got 3"),
    ],
)
def test_an_unknown_algorithm_and_unfit_values_of_one_are_refused(given: object, problem: str) -> None:
    (found,) = problems_of(algorithm=given)
    assert found.startswith(problem)


def test_a_key_of_another_algorithm_is_unknown() -> None:
    (found,) = problems_of(algorithm={"name": "grpo", "gae_lambda": 0.9})
    assert found.startswith(
        "algorithm.gae_lambda: algorithm.name=grpo has no such key, algorithm.name=ppo has; keys of grpo: num_epochs, "
    )


@dataclass(frozen=True, kw_only=True)
class Cat:
    """A variant."""

    name: Literal["cat"] = "cat"
    lives: int = 9
    tails: int = 1

    def __post_init__(self) -> None:
        check_fields(self, {"lives": self.lives >= 1 or "must be at least 1"})


@dataclass(frozen=True, kw_only=True)
class Fish:
    """Another."""

    name: Literal["fish"] = "fish"
    depth: float = 0.0
    tails: int = 1


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """Holds one of them."""

    animal: Annotated[Cat | Fish, Discriminator("name")] = Cat()
    num_visitors: int = 0


@pytest.mark.parametrize(
    ("given", "animal"),
    [
        ({}, Cat()),
        ({"animal": {"lives": 3}}, Cat(lives=3)),
        ({"animal": {"name": "cat", "tails": 2}}, Cat(tails=2)),
        ({"animal": {"name": "fish", "depth": "1e2", "tails": 2}}, Fish(depth=100.0, tails=2)),
    ],
)
def test_the_name_chooses_the_variant_and_the_first_is_the_default(given: dict[str, Any], animal: Cat | Fish) -> None:
    assert validate(Zoo, given) == (Zoo(animal=animal), ())


@pytest.mark.parametrize(
    ("animal", "problems"),
    [
        (
            {"name": "fish", "lives": 3},
            ["animal.lives: animal.name=fish has no such key, animal.name=cat has; keys of fish: name, depth, tails"],
        ),
        ({"depth": 3}, ["animal.depth: animal.name=cat has no such key, animal.name=fish has; keys of cat: "]),
        ({"name": "fish", "dept": 3}, ["animal.dept: unknown key, did you mean animal.depth?"]),
        ({"name": "fish", "zzz": 3}, ["animal.zzz: unknown key; valid keys: name, depth, tails"]),
        ({"name": "dog", "lives": 0}, ["animal.name: must be one of cat, fish, got 'dog'"]),
        ({"name": 7}, ["animal.name: must be one of cat, fish, got 7"]),
        ({"name": ["cat"]}, ["animal.name: must be one of cat, fish, got a list"]),
        ("cat", ["animal: must be a mapping of keys, got 'cat'"]),
        ({"lives": 0, "tails": "a"}, ["animal.lives: must be at least 1, got 0", "animal.tails: must be a whole num"]),
    ],
)
def test_what_is_wrong_with_a_variant_in_words(animal: Any, problems: list[str]) -> None:
    config, found = validate(Zoo, {"animal": animal, "num_visitors": True})
    *found_of_animal, of_visitors = [str(problem) for problem in found]
    assert config is None
    assert of_visitors == "num_visitors: must be a whole number, got true"
    assert len(found_of_animal) == len(problems)
    assert all(text.startswith(beginning) for text, beginning in zip(found_of_animal, problems, strict=True))


def _unions(cls: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, type and field of everything in the tree that may be one of several dataclasses."""
    for field, annotation in zip(dataclasses.fields(cls), hints_of(cls).values(), strict=True):
        path = f"{key}.{field.name}"
        union = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if named_of(annotation) is None and any(map(dataclasses.is_dataclass, get_args(union))):
            yield path, annotation, field
        for nested in nested_dataclasses(annotation):
            yield from _unions(nested, path)


def test_every_union_of_the_tree_has_a_discriminator_and_its_first_variant_for_the_default() -> None:
    for path, annotation, field in _unions(RunConfig):
        variants = variants_of(annotation)
        assert variants is not None, path
        assert field.default_factory is variants.types[variants.default], path


@pytest.mark.parametrize("text", ["\udcff", b"bytes"])
def test_what_json_cannot_hold_is_refused_where_it_stands(text: object) -> None:
    assert problems_of(name=text) == [f"name: must be text or null, got {text!r}"]


@pytest.mark.parametrize("parts", [{"\ud800": 1}, {"data": {"path": "a", "chat_template_kwargs": {"b": "\ud800"}}}])
def test_half_a_character_where_any_text_may_stand_is_refused_too(parts: dict[str, Any]) -> None:
    (problem,) = problems_of(**parts)
    assert "half a surrogate pair" in problem


def test_a_range_is_checked_beside_any_other_mistake() -> None:
    """Also where the default of one key does not go with the value of the other."""
    parts: dict[str, Any] = {
        "pool": {"health_interval_s": 99.0, "health_timeout_s": "long", "switch_timeout_s": -1},
        "reward": {"timeout_s": -1},
        "num_steps": 0,
    }
    assert [text.partition(":")[0] for text in problems_of(**parts)] == [
        "reward.timeout_s",
        "num_steps",
        "pool.switch_timeout_s",
        "pool.health_timeout_s",
    ]
