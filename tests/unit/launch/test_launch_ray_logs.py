from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from ray._private import worker as ray_worker
from rich.console import Console

from rlserve.launch.connect.ray_logs import route_ray_logs
from rlserve.tracking.logs import log_to


def test_rays_records_are_in_the_file_and_not_on_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_worker, "print_to_stdstream", ray_worker.print_to_stdstream)  # put back afterwards
    console = Console(file=io.StringIO())
    logger = logging.getLogger("ray._private.worker")
    logging.getLogger("ray").addHandler(logging.StreamHandler(console.file))
    route_ray_logs()
    with log_to(tmp_path / "log", console):
        logger.warning("not shown")
        ray_worker.print_to_stdstream(
            {"lines": ["A worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False
        )
        logging.getLogger("other").warning("shown")
    log = (tmp_path / "log").read_text()
    assert "not shown" in log
    assert "ray.raylet: A worker died" in log
    assert capsys.readouterr() == ("", "")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "WARNING shown\n"
