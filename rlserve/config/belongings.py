"""What comes with the built-in task does not outlive it: own data need a reward of their own, an own model its data.

A value that the run's own file or an override names is the user's choice and stands. What is judged here came from the
file of a group (``reward: addition``), chosen for the task that is no longer there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlserve.config.compose import Composed
from rlserve.config.keys import flatten, hints_of, join_key, variants_of
from rlserve.config.locate import packaged_root
from rlserve.config.tree import RunConfig
from rlserve.errors import Problem
from rlserve.tasks import BUILTIN_REWARDS, is_builtin
from rlserve.trainers.algorithms.supervised.config import SupervisedConfig

_INSTEAD_OF_A_FUNCTION = ("url", "model_path", "parts")
"""Keys of ``reward`` that stand in the place of ``reward.function``."""
_OF_GENERATING = ("reward", "environment", "rollout", "weights")
"""Parts without effect where nothing is generated."""


def without_replaced_reward(values: Mapping[str, Any], composed: Composed) -> dict[str, Any]:
    """Nested plain values without the built-in reward function where the user names another kind of reward."""
    reward = values.get("reward")
    if not isinstance(reward, Mapping) or not any(reward.get(key) for key in _INSTEAD_OF_A_FUNCTION):
        return dict(values)
    if reward.get("function") in BUILTIN_REWARDS and composed.is_from_group("reward.function"):
        reward = {key: value for key, value in reward.items() if key != "function"}
    return {**values, "reward": reward}


def without_generating(values: Mapping[str, Any], composed: Composed) -> dict[str, Any]:
    """Nested plain values without what the files of groups say of generating, where the run learns from a data set."""
    variants, algorithm = variants_of(hints_of(RunConfig)["algorithm"]), values.get("algorithm")
    assert variants is not None, "algorithms are told apart by their name"
    chosen = variants.chosen_by(algorithm) if isinstance(algorithm, Mapping) else None
    if chosen is None or not issubclass(chosen, SupervisedConfig):
        return dict(values)
    kept = {part: value for part, value in values.items() if part not in _OF_GENERATING}
    for part in _OF_GENERATING:
        if isinstance(value := values.get(part), Mapping):
            kept[part] = _without_groups(value, part, composed)
    return kept


def _without_groups(values: Mapping[str, Any], key: str, composed: Composed) -> dict[str, Any]:
    """What no file of a group has set."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        own_key = join_key(key, name)
        if isinstance(value, Mapping):
            kept[name] = _without_groups(value, own_key, composed)
        elif not composed.is_from_group(own_key):
            kept[name] = value
    return kept


def check_belongings(values: Mapping[str, Any], composed: Composed) -> Iterator[Problem]:
    """Built-in defaults whose counterpart was replaced; ``values`` are flat, dotted key to value."""
    function, data, model = (values.get(key) for key in ("reward.function", "data.path", "model.path"))
    if not isinstance(data, str) or not isinstance(model, str):
        return
    if isinstance(function, str) and composed.is_from_group("reward.function"):
        scored = BUILTIN_REWARDS.get(function, data)
        if scored != data:
            yield Problem(
                "reward.function",
                f"{function} scores answers to {scored}, and data.path is {data}: set reward.function (or "
                f"reward.url, reward.model_path) to your own, or keep it with reward.function={function}",
            )
    if is_builtin(model) and values.get("model.tokenizer_path") is not None:
        yield Problem(
            "model.tokenizer_path",
            f"{model} has a tokenizer of its own, and no other fits it: keep it with model.tokenizer_path=null",
        )
    if is_builtin(data) and data != model and composed.is_from_group("data.path"):
        yield Problem(
            "data.path",
            f"{data} is made for model.path={data}, and model.path is {model}: set data.path to your own, or keep it "
            f"with data.path={data}",
        )


def remarks_on_small_settings(values: Mapping[str, Any], composed: Composed) -> Iterator[Problem]:
    """Settings for the small built-in model that an own model would be trained with; ``values`` are flat."""
    model = values.get("model.path")
    if not isinstance(model, str) or is_builtin(model):
        return
    for shown, content in composed.files.items():
        path = Path(shown).resolve()
        if path.stem == "small" and path.is_relative_to(packaged_root().resolve()):
            kept = [f"{key}={values[key]}" for key, _ in flatten(content) if composed.source(key) == shown]
            if kept:
                message = f"holds settings for a small model, look at them for {model}: {' '.join(kept)}"
                yield Problem(path.parent.name, message, shown)
