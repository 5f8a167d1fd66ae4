"""``rlserve show``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlserve.cli import main
from rlserve.cli.show import describe_steps, facts, shorten
from rlserve.tracking.answers import Answer, AnswersFile
from rlserve.tracking.run_folder import RunFolder

ANSWER = Answer(
    step=1,
    kind="training",
    group_id="0:3",
    index=0,
    prompt="[b]12+30[/b]=",
    reference={"ground_truth": 42},
    response="",
    reward=0.0,
    finish_reason="stop",
    num_prompt_tokens=6,
    num_response_tokens=7,
    weight_spans=((0, 0, 4), (1, 4, 7)),
    staleness=1,
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of three steps with answers worth 0.1, 0.9 and 0.5 each, and one held-out answer before the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    folder = RunFolder.create(tmp_path / "runs", "r1")
    folder.make_latest()
    file = AnswersFile(folder.answers_file)
    file.log_answers(
        0, "held_out", lambda: [replace(ANSWER, step=0, kind="held_out", response="held out", reward=None)]
    )
    for step in (1, 2, 3):
        answers = [
            replace(ANSWER, step=step, index=index, response=f"response {step}.{index}", reward=reward)
            for index, reward in enumerate((0.1, 0.9, 0.5))
        ]
        file.log_answers(step, "training", lambda answers=answers: answers)  # type: ignore[misc]
    file.close(0)
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """The responses that were printed, in order, and the whole output."""
    assert main(["show", *arguments]) == 0
    output = capsys.readouterr().out
    return [line.split()[-1] for line in output.splitlines() if "response " in line], output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["3.0", "3.1", "3.2"]),
        (("r1", "--step", "2"), ["2.0", "2.1", "2.2"]),
        (("runs/r1", "--worst", "-n", "2"), ["3.0", "3.2"]),
        (("latest", "--best", "--step", "1", "-n", "1"), ["1.1"]),
    ],
)
def test_chosen_answers(
    run: RunFolder, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: list[str]
) -> None:
    assert shown(capsys, *arguments)[0] == expected


def test_all_that_is_known_of_an_answer(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _, output = shown(capsys, "r1", "--best", "-n", "1")
    for part in (
        "step 3 · group 0:3 · answer 1 · reward 0.9",
        "[b]12+30[/b]=",
        '{"ground_truth": 42}',
        "ended by itself after 7 tokens · prompt 6 tokens · weights 0 to 1 · 1 steps old",
        "2 more answers of step 3 are kept: -n 3",
    ):
        assert part in output, output
    assert "held out" in shown(capsys, "r1", "--held-out")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r1", "--step", "9"], "no answers of step 9 are kept of r1, only of 1 to 3"),
        (["nosuch"], "no run 'nosuch', neither as a folder nor in runs/; runs there: r1"),
    ],
)
def test_what_is_not_there_is_said(
    run: RunFolder, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["show", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_answers_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(tmp_path, "empty")
    assert main(["show", str(folder.path)]) == 2
    assert "tracking.samples=0" in capsys.readouterr().err


def test_long_texts_are_shortened_in_the_middle() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("a" * 50 + "b" * 950 + "c" * 50, 100) == f"{'a' * 50}\n… 950 more characters (--full) …\n{'c' * 50}"
    assert shorten("abc" * 1000, None) == "abc" * 1000


def test_facts_of_a_cut_answer_with_parts() -> None:
    answer = replace(ANSWER, finish_reason="length", staleness=0, reward_parts={"acc": 0.25})
    assert facts(answer) == "cut (length) after 7 tokens · prompt 6 tokens · weights 0 to 1 · acc 0.25"


def test_steps_in_words() -> None:
    assert describe_steps([1, 2, 3, 5, 8, 9]) == "1 to 3, 5, 8 to 9"
