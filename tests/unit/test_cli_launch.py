"""The command line: what it prints, what it returns, what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlserve.launch
from rlserve import __version__
from rlserve.cli import main
from rlserve.config import LoadedConfig, load
from rlserve.errors import WorkerFailedError

HEAVY = ("torch", "transformers", "ray", "datasets", "wandb", "matplotlib")


class FakeLaunch:
    """Stands in for ``rlserve.launch.launch``; records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[LoadedConfig, Path | None]] = []
        self.may_begin = False
        self.exit_code = 0
        self.error: BaseException | None = None

    def __call__(self, loaded: LoadedConfig, resume: Path | None, *, may_begin: bool) -> int:
        self.calls.append((loaded, resume))
        self.may_begin = may_begin
        if self.error is not None:
            raise self.error
        return self.exit_code


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeLaunch:
    fake = FakeLaunch()
    monkeypatch.setitem(vars(rlserve.launch), "launch", fake)  # setattr would import the real one first
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], (*HEAVY, "hydra", "omegaconf", "yaml")),
        (["--version"], (*HEAVY, "hydra", "omegaconf", "yaml")),
        (["launch", "--help"], (*HEAVY, "hydra", "omegaconf", "yaml")),
        (["launch", "conf/rlhf.yaml", "--dry-run"], HEAVY),
        (["launch", "conf/rlhf.yaml", "trainer.learning_rte=1"], HEAVY),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_to_answer(arguments: list[str], forbidden: tuple[str, ...], tmp_path: Path) -> None:
    """Where the built-in model is not made yet: with one, a dry run loads its tokenizer."""
    program = (
        "import sys\n"
        "from rlserve.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print('\\nMODULES', *sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RLSERVE_CACHE": str(tmp_path)},
    )
    answer, _, imported = result.stdout.rpartition("MODULES ")
    assert answer.strip() or result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert "rlserve.cli" in imported.split()
    assert not set(forbidden) & set(imported.split())


def test_nothing_heavy_is_imported_by_the_commands_that_only_look(tmp_path: Path) -> None:
    """All in one process: what one of them imported would be seen."""
    commands = ["list", "status x", "show x", "compare a b", "report x", "eval x", "init /dev/null/x", "clean x"]
    program = (
        "import sys\n"
        "from rlserve.cli import main\n"
        "print(*[main(command.split()) for command in sys.argv[1:]])\n"
        "print(*sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *commands], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    *_, exit_codes, imported = result.stdout.splitlines()
    assert exit_codes == "0 2 2 2 2 2 2 2", result.stderr
    assert {"rlserve.cli.eval", "rlserve.cli.clean"} <= set(imported.split())
    assert not {*HEAVY, "hydra", "omegaconf"} & set(imported.split())


def test_the_module_runs_as_the_command_does() -> None:
    result = subprocess.run([sys.executable, "-m", "rlserve", "--version"], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, f"rlserve {__version__}\n")


def test_a_launch_hands_on_the_loaded_configuration(launch: FakeLaunch) -> None:
    launch.exit_code = 7
    assert main(["launch", "conf/rlhf.yaml", "num_steps=3", "pool=two"]) == 7
    ((loaded, resume),) = launch.calls
    assert resume is None
    assert loaded.config.num_steps == 3
    assert loaded.source.name == "rlhf.yaml"


@pytest.mark.parametrize(
    "arguments",
    [
        ["conf/rlhf.yaml", "num_steps=3", "--dry-run", "pool=two"],
        ["--dry-run", "conf/rlhf.yaml", "num_steps=3", "pool=two"],
        ["conf/rlhf.yaml", "--dry-run", "num_steps=3", "pool=two"],
    ],
    ids=" ".join,
)
def test_a_dry_run_prints_a_configuration_that_can_be_launched(
    launch: FakeLaunch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    assert main(["launch", *arguments]) == 0
    assert launch.calls == []
    printed = capsys.readouterr().out
    assert "# prompts: " in printed
    assert "# rollout slots: 1 of 2 at the start; at least 1, at most 1 (rate_matching)\n" in printed
    assert "pool.slots: one of the 2 trains and one rolls out, so nothing ever moves (manager=static)\n" in printed
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    overrides = ["num_steps=3", "pool=two"]
    assert load("printed.yaml", discovered={}).config == load("conf/rlhf.yaml", overrides, discovered={}).config


def test_problems_are_printed_one_a_line_and_nothing_is_started(
    launch: FakeLaunch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "conf/rlhf.yaml", "trainer.learning_rte=1", "seed=-1"]) == 2
    assert launch.calls == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "override: seed: must be at least 0, got -1\n"
        "override: trainer.learning_rte: unknown key, did you mean trainer.learning_rate?\n"
    )


@pytest.mark.parametrize("arguments", [[], ["num_steps=3"]], ids=str)
def test_a_launch_needs_a_configuration(
    launch: FakeLaunch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["launch", *arguments]) == 2
    assert capsys.readouterr().err == (
        "name a configuration first: rlserve launch CONFIG [key=value ...] [--dry-run] [--resume RUN | --continue]\n"
    )


def test_a_configuration_may_have_an_equals_sign_in_its_name(launch: FakeLaunch, tmp_path: Path) -> None:
    (tmp_path / "lr=1.yaml").write_text('model: {path: a/b}\ndata: {path: a/b}\nreward: {function: "json:loads"}\n')
    assert main(["launch", "lr=1.yaml", "--dry-run"]) == 0


def test_an_error_of_the_run_is_one_message_with_its_exit_code(
    launch: FakeLaunch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch.error = WorkerFailedError("worker H100/0 died")
    assert main(["launch", "conf/rlhf.yaml"]) == 1
    assert capsys.readouterr().err == "worker H100/0 died\n"


def test_an_interruption_returns_130(launch: FakeLaunch) -> None:
    launch.error = KeyboardInterrupt()
    assert main(["launch", "conf/rlhf.yaml"]) == 130


def test_a_bug_keeps_its_traceback(launch: FakeLaunch) -> None:
    launch.error = AssertionError("bug")
    with pytest.raises(AssertionError, match="bug"):
        main(["launch", "conf/rlhf.yaml"])


@pytest.fixture
def saved_run(launch: FakeLaunch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    main(["launch", "conf/rlhf.yaml", "num_steps=3", "--dry-run"])
    folder = tmp_path / "runs/first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "runs/latest").symlink_to("first")
    return folder


def test_what_is_started_again_begins_once_and_then_goes_on(launch: FakeLaunch, saved_run: Path) -> None:
    assert main(["launch", "conf/rlhf.yaml", "--continue", "name=other"]) == 0
    assert launch.calls.pop()[1] is None
    assert launch.may_begin
    again = [
        "launch",
        str(saved_run / "config.yaml"),
        "--continue",
        f"name={saved_run.name}",
        "pool.switch_timeout_s=9",
    ]
    assert main(again) == 0
    ((loaded, resume),) = launch.calls
    assert (resume, loaded.config.pool.switch_timeout_s) == (saved_run, 9.0)


def test_the_command_that_began_a_run_goes_on_with_it(
    launch: FakeLaunch, saved_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it says of the past is what the run has; another value is refused."""
    again = ["launch", str(saved_run / "config.yaml"), "--continue", f"name={saved_run.name}", "num_steps=3"]
    assert main([*again, "seed=0", "algorithm=ppo", "checkpoint.every_steps=20"]) == 0
    ((loaded, resume),) = launch.calls
    assert (resume, loaded.config.num_steps) == (saved_run, 3)
    assert main([*again, "seed=1", "checkpoint.every_steps=20"]) == 2
    assert capsys.readouterr().err.startswith("override: seed: cannot change when a run is resumed")
    assert len(launch.calls) == 1


def test_what_is_started_again_must_be_named(launch: FakeLaunch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "conf/rlhf.yaml", "--continue"]) == 2
    assert capsys.readouterr().err == "--continue must know which run is meant: say name=...\n"
    assert launch.calls == []


def test_a_run_is_resumed_without_naming_a_configuration(launch: FakeLaunch, saved_run: Path) -> None:
    assert main(["launch", "--resume", "latest", "manager.cooldown_s=9"]) == 0
    ((loaded, resume),) = launch.calls
    assert resume == saved_run
    assert (loaded.config.num_steps, loaded.config.manager.cooldown_s) == (3, 9.0)


def test_a_configuration_named_besides_says_where_runs_lie_and_what_differs(
    launch: FakeLaunch, saved_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "conf/rlhf.yaml", "--resume", "latest"]) == 0
    ((loaded, resume),) = launch.calls
    assert resume == saved_run
    assert loaded.config.num_steps == 3
    assert capsys.readouterr().err == (
        "first goes on with its own configuration; conf/rlhf.yaml differs in: num_steps\n"
    )


def test_a_run_that_is_not_there_is_said_so(launch: FakeLaunch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--resume", "latest"]) == 2
    assert "no run 'latest' to resume" in capsys.readouterr().err
