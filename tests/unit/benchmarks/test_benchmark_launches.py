from __future__ import annotations

from pathlib import Path

import pytest
from launches import launch


def test_a_run_that_was_interrupted_is_not_taken_for_one_that_is_done(tmp_path: Path) -> None:
    run = tmp_path / "steady-moves-0"
    run.mkdir()
    (run / "config.yaml").write_text("num_steps: 48\n", encoding="utf-8")
    for summary, num_steps in ((None, 0), ('{"num_steps": 25}', 25)):
        if summary is not None:
            (run / "summary.json").write_text(summary, encoding="utf-8")
        with pytest.raises(SystemExit, match=f"ended after {num_steps} of 48 steps: remove it"):
            launch("conf/paced.yaml", name=run.name, folder=tmp_path)
    (run / "summary.json").write_text('{"num_steps": 48}', encoding="utf-8")
    launch("conf/paced.yaml", name=run.name, folder=tmp_path)
    assert sorted(file.name for file in run.iterdir()) == ["config.yaml", "summary.json"], "it was left as it is"
