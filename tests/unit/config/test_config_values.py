"""Values of single keys: text as it was typed or spelled, lists of text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.config import LoadedConfig, load
from rlserve.config.overrides import Override, parse_overrides

RUN = """\
model: {path: org/model}
data: {path: org/data}
reward: {function: "my.module:score"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``run.yaml`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    return tmp_path


def loaded(*overrides: str) -> LoadedConfig:
    return load("run.yaml", overrides, discovered={})


def value_of(text: str) -> object:
    """The value that one override gives."""
    (override,), problems = parse_overrides([text])
    assert problems == ()
    return override.value


# As typed


@pytest.mark.parametrize(
    "typed",
    [
        "007",
        "1e5",
        "0x1f",
        "1_000",
        "true",
        "off",
        "a|b",
        "a,b",
        "my run",
        "[1,",
        "{",
        "a(b)",
        "x=1",
        "#5",
        "été",
        "数据",
    ],
)
def test_text_is_what_was_typed(typed: str) -> None:
    assert value_of(f"name={typed}") == typed
    assert value_of(f"tracking.wandb.group={typed}") == typed


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\\"'$"), min_size=1))
def test_any_text_is_taken(typed: str) -> None:
    """Only quotes, escapes, interpolations, null in any case and Hydra's functions mean something else."""
    if typed.strip().lower() == "null" or re.match(r"\s*\w+\(", typed):
        return
    assert value_of(f"data.path={typed}").strip(" \t") == typed.strip(" \t")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("'my run'", "my run"),
        ('"007"', "007"),
        (r"epoch\=9", "epoch=9"),
        ("${seed}", "${seed}"),
        ("null", None),
        ("NULL", None),
        ("", ""),
    ],
)
def test_what_hydra_reads_as_text_stays_as_hydra_reads_it(typed: str, value: str | None) -> None:
    assert value_of(f"name={typed}") == value


@pytest.mark.parametrize(
    "path",
    ["x=1/t.jsonl", "été.jsonl", "数据.jsonl", "a(b).jsonl", "a#b.jsonl", "a b.jsonl", "1.jsonl", "a,b.jsonl"],
)
def test_a_file_of_any_name_is_found(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).touch()
    assert loaded(f"data.path={path}").config.data.path == str(folder / path)


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("[</answer>]", ["</answer>"]),
        ('["</answer>"]', ["</answer>"]),
        ("</answer>", ["</answer>"]),
        (r"\n\n", ["\n\n"]),
        (r"['\n\n',\t,\r]", ["\n\n", "\t", "\r"]),
        (r"[\\n]", [r"\n"]),
        (r"\d\boxed", [r"\d\boxed"]),
        ('["a,b",c]', ["a,b", "c"]),
        (r"[a\,b,c]", ["a,b", "c"]),
        ('"a,b"', ["a,b"]),
        ("[1,2e5, off ]", ["1", "2e5", "off"]),
        ("[é,数]", ["é", "数"]),
        ('["[/INST]"]', ["[/INST]"]),
        ("[]", []),
        ("null", None),
        ("NULL", None),
    ],
)
def test_lists_of_text(typed: str, texts: list[str] | None) -> None:
    assert value_of(f"rollout.stop={typed}") == texts
    assert value_of(f"tracking.wandb.tags={typed}") == texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_every_list_of_text_can_be_typed(texts: list[str]) -> None:
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    assert value_of("rollout.stop=[" + ",".join(f'"{text}"' for text in quoted) + "]") == texts


# As spelled in a file


def test_numbers_in_the_place_of_text_are_taken_as_the_file_spells_them(folder: Path) -> None:
    text = RUN + "name: 007\nrollout: {stop: [1e5, off]}\ntracking: {wandb: {tags: on, group: 1_0}}\n"
    (folder / "run.yaml").write_text(text + "pool: {slots: [{type: 4090, count: 2}]}\nlaunch: {kind: cluster}\n")
    config = loaded().config
    assert config.name == "007"
    assert config.rollout.stop == ("1e5", "off")
    assert (config.tracking.wandb.tags, config.tracking.wandb.group) == (("on",), "1_0")
    assert config.pool.slots[0].type == "4090"  # type: ignore[union-attr]


def test_a_number_from_another_key_is_taken_as_text(folder: Path) -> None:
    (folder / "run.yaml").write_text(RUN + "name: ${seed}\nseed: 12\n")
    assert loaded().config.name == "12"
    assert loaded("tracking.wandb.group=${seed}", "seed=3").config.tracking.wandb.group == "3"


@pytest.mark.parametrize("name", ["off", "on", "yes", "no", "2"])
def test_a_group_may_have_a_choice_that_yaml_takes_for_something_else(folder: Path, name: str) -> None:
    (folder / "tracking").mkdir()
    (folder / f"tracking/{name}.yaml").write_text("prometheus_port: 7\n")
    (folder / "run.yaml").write_text(f"defaults:\n  - tracking: {name}\n  - _self_\n" + RUN)
    assert loaded().config.tracking.prometheus_port == 7
    (folder / "run.yaml").write_text(RUN)
    assert loaded(f"tracking={name}").config.tracking.prometheus_port == 7


def test_the_packaged_choice_off_in_a_list_of_defaults(folder: Path) -> None:
    (folder / "run.yaml").write_text("defaults:\n  - tracking: off\n  - pool: null\n  - _self_\n" + RUN)
    config = loaded().config
    assert (config.tracking.wandb.enabled, config.tracking.tensorboard) == (False, False)


def test_an_override_of_something_else_than_text_is_judged_by_its_key() -> None:
    assert parse_overrides(["seed=a b(", "nothing.like.it=é"]) == (
        (
            Override(key="seed", value="a b(", typed="a b("),
            Override(key="nothing.like.it", value="é", typed="é"),
        ),
        (),
    )
