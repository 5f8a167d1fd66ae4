from __future__ import annotations

import io
import logging
from pathlib import Path

from rich.console import Console

from rlserve.launch.ray_logs import route_ray_logs
from rlserve.tracking.logs import log_to


def test_rays_records_are_in_the_file_and_not_on_the_console(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    logger = logging.getLogger("ray._private.worker")
    logging.getLogger("ray").addHandler(logging.StreamHandler(console.file))
    route_ray_logs()
    with log_to(tmp_path / "log", console):
        logger.warning("\x1b[36m(raylet)\x1b[0m A worker died or was killed")
        logging.getLogger("other").warning("shown")
    assert "(raylet)" in (tmp_path / "log").read_text()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "WARNING shown\n"
