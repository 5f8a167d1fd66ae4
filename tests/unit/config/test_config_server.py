"""What keeps clients of a run out is told before the run begins."""

from __future__ import annotations

from typing import Any

import pytest
from config_builders import config_of

from rlserve.config import server_checks
from rlserve.config.server_checks import check_server
from rlserve.errors import ConfigurationError
from rlserve.serving.run_server_config import RunServerConfig


def problems(**server: Any) -> list[str]:
    return [str(problem) for problem in check_server(config_of(rollout={"server": server}))]


def test_nothing_is_asked_of_a_run_without_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "missing_packages", lambda: ("fastapi",))
    assert problems(host="0.0.0.0") == []


def test_packages_that_are_missing_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "missing_packages", lambda: ("fastapi", "uvicorn"))
    [problem] = problems(enabled=True)
    assert "rollout.server.enabled" in problem
    assert "needs fastapi, uvicorn: pip install 'rlserve[serve]'" in problem


def test_others_than_this_machine_need_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLSERVE_API_KEYS", raising=False)
    server = {"enabled": True, "host": "0.0.0.0"}
    [problem] = problems(**server)
    assert "access.keys_file" in problem
    monkeypatch.setenv("RLSERVE_API_KEYS", "long-enough")
    assert problems(**server) == []
    monkeypatch.setenv("RLSERVE_API_KEYS", "short")
    assert "at least 8" in problems(**server)[0]


def test_a_template_that_is_not_there_is_named() -> None:
    [problem] = problems(enabled=True, chat_template="/none.jinja")
    assert "/none.jinja" in problem


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_leaves_something_to_both(share: float) -> None:
    with pytest.raises(ConfigurationError, match="max_share"):
        RunServerConfig(max_share=share)


def test_a_share_is_one_place_at_least() -> None:
    assert [RunServerConfig(max_share=0.25).num_places(capacity) for capacity in (1, 4, 64)] == [1, 1, 16]
