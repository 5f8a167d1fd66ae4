from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.errors import DataError
from rlserve.tracking.live import LiveFile, LiveGang, LiveState, read_live

STATE = LiveState(
    time_s=12.5,
    status="training",
    queue_length=3,
    num_in_flight=16,
    num_buffered=4,
    trainer_waiting=False,
    weight_version=2,
    tokens_per_s=812.5,
    gangs=(
        LiveGang(id="H100/0", type="H100", num_slots=1, state="train", version=2),
        LiveGang(
            id="H200/0-1",
            type="H200",
            num_slots=2,
            state="rollout",
            version=1,
            num_running=30,
            num_waiting=2,
            kv_cache_usage=0.5,
            tokens_per_s=812.5,
        ),
    ),
)


def test_what_is_written_is_read_and_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    file = LiveFile(path)
    assert read_live(path) is None
    file.write(STATE)
    assert read_live(path) == STATE
    assert [each.name for each in tmp_path.iterdir()] == ["live.json"]
    file.remove()
    file.remove()
    assert read_live(path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"time_s": 1}', '{"gangs": [{"id": "a"}]}', '{"gangs": [], "more": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "live.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"live\.json"):
        read_live(path)
