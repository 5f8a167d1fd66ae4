"""``rlserve serve``: what is told before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.cli import main, serve
from rlserve.serving import packages


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in ("uvicorn", "orjson") else name)
    assert main(["serve", "builtin:addition"]) == 2
    assert "serving needs uvicorn, orjson: pip install 'rlserve[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/no/such/model"], "no checkpoint '/no/such/model'"),
        (["builtin:nothing"], "there is no built-in task 'builtin:nothing'"),
        (["builtin:addition", "port=70000"], "port: must be from 0 to 65535"),
        (["builtin:addition", "wrong.key=1"], "wrong"),
        (["conf/other.yaml"], "no such configuration"),
    ],
)
def test_what_is_wrong_is_told_at_once(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["serve", *arguments, "--output-dir", str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err


def test_a_model_is_a_model_and_a_file_a_file() -> None:
    assert serve._separate("/m", ["a=1"]) == ("conf/serve.yaml", ["model.path=/m", "a=1"])
    assert serve._separate("mine.yaml", ["a=1"]) == ("mine.yaml", ["a=1"])
    assert serve._separate("model.path=/m", ["a=1"]) == ("conf/serve.yaml", ["model.path=/m", "a=1"])
