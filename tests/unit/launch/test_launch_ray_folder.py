"""The folder of our own Ray: short enough for a socket, writable, or a clear refusal."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from rlserve.errors import PoolError
from rlserve.launch.connect import ray_folder
from rlserve.launch.connect.ray_folder import make_ray_folder, remove_ray_folder


def fake_temporary(monkeypatch: pytest.MonkeyPatch, folder: Path, fallback: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(ray_folder, "_FALLBACK", fallback)


def test_a_short_folder_is_used_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        fake_temporary(monkeypatch, Path(place), Path("/nowhere"))
        one, two = make_ray_folder(), make_ray_folder()
        assert {one.parent, two.parent} == {Path(place)}
        assert one != two
        (one / "session").mkdir()
        remove_ray_folder(one)
        assert list(Path(place).iterdir()) == [two]


def test_a_long_folder_gives_way_to_the_short_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("a" * 70)
    long.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        fake_temporary(monkeypatch, long, Path(place))
        assert make_ray_folder().parent == Path(place)


def test_where_neither_will_do_both_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("a" * 70)
    fake_temporary(monkeypatch, long, Path("/proc/nowhere"))
    with pytest.raises(PoolError) as caught:
        make_ray_folder()
    message = str(caught.value)
    assert f"{long} is too long: sockets below it have " in message
    assert "/proc/nowhere: No such file or directory" in message
    assert "set TMPDIR" in message
