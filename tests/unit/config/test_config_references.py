"""References to models, data and functions: those that are fine, and those that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlserve.config.references import check_references


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
            reward__url="https://judge:8000/score?model=a",
            reward__model_path="org/reward-model",
        )
        == []
    )
    assert references(model__path="builtin:addition", reward__function="package.module:function") == []
    assert references(data__path="verifiers:me/my-game", environment__name="verifiers:my-game") == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.path", "/nowhere", "no such folder, and no name on the hub (org/name): '/nowhere'"),
        ("model.path", "", "must not be empty"),
        (
            "model.path",
            "builtin:chess",
            "there is no builtin:chess; there is: builtin:addition, builtin:countdown, builtin:digits",
        ),
        ("model.path", "file.txt", "file.txt is a file, and no model: name the folder that holds its config.json"),
        ("model.tokenizer_path", "builtin:addition", "no builtin model can stand here, got 'builtin:addition'"),
        (
            "data.path",
            "data/train.jsonl",
            "no such file or folder, and no data set's name on the hub: 'data/train.jsonl'",
        ),
        (
            "data.path",
            "builtin:chess",
            "there is no builtin:chess; there is: builtin:addition, builtin:countdown, builtin:digits",
        ),
        ("data.path", "verifiers:a b", "must be verifiers:ID, with the id of an environment, got 'verifiers:a b'"),
        ("environment.name", "verifiers:", "must be verifiers:ID, with the id of an environment, got 'verifiers:'"),
        ("reward.function", "score", "must be module:function or path/to/file.py:function, got 'score'"),
        ("reward.function", "a b:score", "must be module:function or path/to/file.py:function, got 'a b:score'"),
        ("reward.function", "module:", "must be module:function or path/to/file.py:function, got 'module:'"),
        ("reward.function", "no/such.py:score", "no such file: 'no/such.py'"),
        ("reward.function", "builtin:chess", "there is no builtin:chess; there is: builtin:code, builtin:math_verify"),
        ("reward.url", "judge:8000", "must begin with http:// or https:// and name a host, got 'judge:8000'"),
        (
            "reward.parts.judge.url",
            "http:///score",
            "must begin with http:// or https:// and name a host, got 'http:///score'",
        ),
        ("reward.parts.format.function", "no/such.py:score", "no such file: 'no/such.py'"),
        (
            "reward.parts.judge.model_path",
            "file.txt",
            "file.txt is a file, and no model: name the folder that holds its config.json",
        ),
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
