"""Trying a reward before a run: whatever a function does, the answer comes in time and names the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_rollout_reward_function import make_sample, reward_file

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.probe import RewardProbe


def try_reward(folder: Path, body: str, *, timeout_s: float = 60.0, log: Path | None = None) -> None:
    config = RewardConfig(function=reward_file(folder, body), timeout_s=timeout_s)
    with RewardProbe(config, log) as probe:
        probe.load()
        probe.try_on([make_sample(answer, sample_id=f"held_out:{answer}") for answer in "123"], samples_per_prompt=1000)


def test_a_good_function_passes_and_what_it_prints_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may fail on a row: rows differ."""
    log = tmp_path / "logs" / "reward.log"
    body = "import subprocess\ndef score(sample):\n    print('HERE')\n    subprocess.run(['echo', 'THERE'])\n"
    try_reward(tmp_path, body + "    return 1 / (int(sample.response) - 1)\n", log=log)
    assert "probe HERE\nTHERE\n" in log.read_text()
    (message,) = caplog.messages
    assert "ZeroDivisionError" in message
    assert message.endswith("on prompt held_out:2 it did not fail)")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", r"my_reward\.py cannot be imported: ZeroDivisionError at .*my_reward\.py:1: division by zero"),
        ("import os; os._exit(3)", r"while it was imported, its process ended with exit code 3"),
        ("def score(sample):\n  raise KeyError('a')", r"KeyError at .*my_reward\.py:2: 'a' .*and on 2 other held-out"),
        ("def score(sample):\n  return 'x'", r"returned 'x' \(str\) on prompt held_out:1 \(tried before the run"),
        ("import sys\ndef score(sample):\n  print('bye'); sys.exit(4)", r"exit code 4; the last .*:\n\S* probe bye"),
        ("import os\ndef score(sample):\n  os.kill(os.getpid(), 9)", r"on prompt held_out:1: its process was ended by"),
    ],
)
def test_a_bad_function_is_an_error_with_its_place(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        try_reward(tmp_path, body)


def test_a_function_that_hangs_is_an_error_in_time(tmp_path: Path) -> None:
    body = "import time\ndef score(sample):\n  time.sleep(1000)"
    with pytest.raises(RewardError, match=r"prompt held_out:1: no answer within reward.timeout_s=0.5"):
        try_reward(tmp_path, body, timeout_s=0.5)


def test_a_function_too_slow_for_its_deadline_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = "import time\n{} score(sample):\n  time.sleep(0.02)\n  return 1"
    try_reward(tmp_path, body.format("def"), timeout_s=10)
    (message,) = caplog.messages
    assert "the 1000 answers to a prompt would take " in message
    assert "more than reward.timeout_s=10" in message
    try_reward(tmp_path, body.format("async def"), timeout_s=10)
    assert len(caplog.messages) == 1, "async answers are scored all at once"
