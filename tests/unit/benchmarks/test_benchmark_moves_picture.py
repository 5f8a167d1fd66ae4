"""The README's picture, from folders as the benchmark leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from coscheduling import SCENARIOS
from known_rates import World
from moves_picture import best_static, draw, main, read_courses

from rlserve.tracking import names
from rlserve.tracking.jsonl import to_json_line
from rlserve.tracking.run_folder import RunFolder


def write_run(output_dir: Path, name: str, world: World) -> None:
    folder = RunFolder.create(output_dir, name)
    folder.events_file.write_text("".join(map(to_json_line, world.events)))
    steps = [event for event in world.events if event["event"] == "step"]
    kept = [{"step": step["step"], names.TIME: step["time_s"], names.KEPT_SHARE: 0.5} for step in steps]
    folder.metrics_file.write_text("".join(map(to_json_line, kept)))
    folder.summary_file.write_text("{}")


def static_run(num_rollout: int) -> World:
    world = World(num_rollout)
    world.steps(12)
    return world


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """With moves, and two splits of which the one of the start is worse."""
    moving = World(1)
    moving.steps(4)
    moving.move(1)
    moving.steps(8)
    write_run(tmp_path, "kept-rises-moves-0", moving)
    write_run(tmp_path, "kept-rises-static-9-0", static_run(1))
    write_run(tmp_path, "kept-rises-static-7-0", static_run(2))
    return tmp_path


def test_the_best_split_and_that_of_the_start_stand_beside_the_moves(runs: Path) -> None:
    courses = read_courses(runs, SCENARIOS["kept-rises"], 0)
    assert set(courses) == {None, 7, 9}
    assert best_static(courses) == 7
    groups, _, slots = draw(courses, SCENARIOS["kept-rises"]).axes
    labels = [text.get_text() for text in groups.get_legend().get_texts()]  # type: ignore[union-attr]
    assert [label.partition(":")[0] for label in labels] == [
        "best static split, 7 roll out",
        "split of the start, 9 roll out",
        "with moves",
    ]
    assert slots.get_xlim()[1] >= courses[9].end_s


def test_the_picture_is_small_and_what_is_missing_is_said(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "moves.png"
    monkeypatch.setattr("sys.argv", ["moves_picture.py", str(runs), "--output", str(picture)])
    assert main() == 0
    assert 10_000 < picture.stat().st_size < 150_000
    monkeypatch.setattr("sys.argv", ["moves_picture.py", str(runs), "--scenario", "steady"])
    assert main() == 2
    assert "coscheduling.py --scenario steady" in capsys.readouterr().err
