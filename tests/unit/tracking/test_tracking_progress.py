from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from rlserve.tracking.logs import log_to
from rlserve.tracking.progress import (
    LiveProgress,
    NoProgress,
    PlainProgress,
    ProgressState,
    create_progress,
    estimate_time_left_s,
    format_duration,
    render_line,
    render_live,
)


def make_state(**changes: object) -> ProgressState:
    values: dict[str, object] = {
        "name": "rlhf-1",
        "status": "training",
        "step": 23,
        "num_steps": 60,
        "elapsed_s": 95.0,
        "time_left_s": 3725.4,
        "reward": 0.7134,
        "kl": 0.0021,
        "queue_length": 12,
        "num_train": 2,
        "num_rollout": 1,
        "num_moving": 1,
        "rollout_tokens_per_s": 1834.4,
        "weight_version": 22,
        "last_decision": "queue 23 > 20: cpu-a/1 to rollout",
    }
    return ProgressState(**(values | changes))  # type: ignore[arg-type]


def make_console(*, terminal: bool, width: int = 100, environment: dict[str, str] | None = None) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        height=30,
        color_system=None,
        _environ={"TERM": "xterm", **(environment or {})},
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_line() -> None:
    assert render_line(make_state()) == (
        "[1:35]  step 23/60  reward 0.713  kl 0.0021  queue 12  train 2  rollout 1  moving 1  1,834 tokens/s  "
        "weights v22  1:02:05 left"
    )


def test_a_run_that_learns_from_a_data_set_shows_its_loss_and_no_rollout() -> None:
    state = make_state(loss=0.51234, reward=None, kl=None, num_rollout=0, weight_version=None, time_left_s=None)
    assert render_line(state) == "[1:35]  step 23/60  loss 0.5123  train 2  moving 1"
    console = make_console(terminal=True, width=100)
    console.print(render_live(state))
    shown = written(console)
    assert "loss 0.5123" in shown
    assert not [word for word in ("reward", "queue 12", "tokens/s") if word in shown]


def test_line_before_anything_is_known() -> None:
    state = ProgressState(name="run", status="starting workers", step=0, num_steps=60, elapsed_s=0.4)
    assert render_line(state) == (
        "[0:00]  step 0/60  reward -  kl -  queue -  train 0  rollout 0  - tokens/s  no weights yet"
    )


@pytest.mark.parametrize("width", [72, 100, 160])
def test_live_display_shows_everything_in_five_lines(width: int) -> None:
    console = make_console(terminal=True, width=width)
    console.print(render_live(make_state()))
    lines = written(console).splitlines()
    assert len(lines) == 5
    text = "\n".join(lines)
    for part in (
        "rlhf-1  training",
        "step 23/60",
        "1:35 gone, about 1:02:05 left",
        "reward 0.713",
        "KL 0.0021",
        "weights v22",
        "rollout 1,834 tokens/s",
        "train ■■  rollout ■  moving ■  queue 12",
        "last decision: queue 23 > 20: cpu-a/1 to rollout",
    ):
        assert part in text
    assert "dead" not in text


def test_a_large_pool_is_drawn_as_numbers_and_an_empty_side_as_a_dash() -> None:
    console = make_console(terminal=True)
    console.print(render_live(make_state(num_train=0, num_rollout=64, num_moving=0, num_dead=3)))
    assert "train -  rollout ■ x 64  dead ■■■  queue 12" in written(console)


def test_brackets_in_a_decision_are_text_not_markup() -> None:
    console = make_console(terminal=True)
    console.print(render_live(make_state(last_decision="[red]hold[/red]")))
    assert "last decision: [red]hold[/red]" in written(console)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (247, "4:07"), (3599.5, "1:00:00"), (90061, "25:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_time_left_follows_the_last_steps_and_no_single_slow_one() -> None:
    assert estimate_time_left_s([], 10) is None
    assert estimate_time_left_s([100.0] * 5 + [2.0] * 9 + [50.0], 10) == 20.0


@pytest.mark.parametrize(
    ("kind", "terminal", "environment", "expected"),
    [
        ("auto", True, {}, LiveProgress),
        ("auto", False, {}, PlainProgress),
        ("auto", True, {"TERM": "dumb"}, PlainProgress),
        ("live", True, {"TERM": "dumb"}, PlainProgress),
        ("live", True, {}, LiveProgress),
        ("plain", True, {}, PlainProgress),
        ("none", True, {}, NoProgress),
    ],
)
def test_display_suits_the_console(kind: str, terminal: bool, environment: dict[str, str], expected: type) -> None:
    progress = create_progress(kind, make_console(terminal=terminal, environment=environment))  # type: ignore[arg-type]
    progress.close()
    assert type(progress) is expected


def test_plain_display_writes_one_line_a_step_and_one_a_status() -> None:
    console = make_console(terminal=False, width=20)
    progress = PlainProgress(console)
    for step, status in ((0, "starting workers"), (0, "training"), (0, "training"), (1, "training"), (1, "training")):
        progress.update(make_state(step=step, status=status, elapsed_s=3.0))
    progress.show_status("making the report")
    lines = written(console).splitlines()
    assert [line.split("  reward")[0] for line in lines] == [
        "[0:03]  rlhf-1: starting workers",
        "[0:03]  rlhf-1: training",
        "[0:03]  step 1/60",
        "[0:03]  rlhf-1: making the report",
    ]


# Logging, alone and beside the display.


def test_records_scroll_by_above_the_live_display(tmp_path: Path) -> None:
    console = make_console(terminal=True)
    progress = LiveProgress(console)
    with log_to(tmp_path / "rlserve.log", console):
        progress.update(make_state(step=1))
        logging.getLogger("rlserve.pool").warning("slot [cpu-a/1] was lost")
        progress.update(make_state(step=2))
    progress.close()
    after_record = written(console).split("slot [cpu-a/1] was lost")[1]
    assert "step 1/60" in after_record, "the display is drawn again below the record"
    assert after_record.index("step 1/60") < after_record.index("step 2/60")
    before_record = written(console).split("slot [cpu-a/1] was lost")[0]
    assert before_record.rstrip(" ").count("\x1b[2K") >= 5, "the five lines are erased before the record is written"


def test_log_file_and_console_get_our_records_and_others_warnings(tmp_path: Path) -> None:
    console = make_console(terminal=False)
    log_file = tmp_path / "rlserve.log"
    with log_to(log_file, console):
        logging.getLogger("rlserve.manager").info("moved %s", "cpu-a/1")
        logging.getLogger("some_library").info("chatter")
        logging.getLogger("some_library").warning("trouble")
        logging.getLogger("rlserve.manager").debug("detail")
    logging.getLogger("rlserve.manager").warning("after the end")
    assert written(console) == "INFO moved cpu-a/1\nWARNING trouble\n"
    text = log_file.read_text()
    assert "rlserve.manager: moved cpu-a/1" in text
    assert "some_library: trouble" in text
    for absent in ("chatter", "detail", "after the end"):
        assert absent not in text
