"""A file of prices is opened before anything is started, also where nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.cli import main

GOOD = "currency: EUR\ndate: 2026-11-01\nper_hour: {cpu-a: 1.0, cpu-b: 0.5}\n"
COMMANDS = (
    ("launch", "conf/rlhf.yaml", "--dry-run"),
    ("submit", "conf/rlhf.yaml", "--to", "slurm", "--dry-run"),
    ("sweep", "conf/rlhf.yaml", "seed=1,2", "--dry-run"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, None),
        (None, "cannot be read"),
        ("currency: [", "is not YAML"),
        (GOOD.replace("currency: EUR\n", ""), "must have the keys"),
        (GOOD.replace("0.5", "cheap"), "per_hour.cpu-b must be a number"),
        (GOOD.replace(", cpu-b: 0.5", ""), "cost.budget.money needs a price for cpu-b"),
    ],
    ids=["good", "missing", "no yaml", "no currency", "no number", "a type too few"],
)
def test_mistakes_in_prices_are_said_by_a_dry_run(
    command: tuple[str, ...], text: str | None, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = tmp_path / "prices.yaml"
    if text is not None:
        prices.write_text(text)
    code = main([*command, f"cost.prices={prices}", "cost.budget.money=5", f"output_dir={tmp_path}"])
    captured = capsys.readouterr()
    assert (code == 0) == (said is None), captured.err
    assert said is None or said in captured.err
