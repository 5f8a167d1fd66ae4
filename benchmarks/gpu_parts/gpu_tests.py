"""The tests in ``tests/gpu``, one check each, from the output of pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from gpu_parts.base import Place, Report

ROOT = Path(__file__).resolve().parents[2]
_OUTCOME = re.compile(
    r"^(?P<test>\S+::.+?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)(?: \((?P<reason>.*)\))?(?:\s+\[.*\])?$"
)


def measure_tests(place: Place, report: Report) -> None:
    """Run them all; each reports as it ends."""
    if not place.on_gpu:
        report.skipped("tests/gpu", "needs a GPU")
    elif find_spec("pytest") is None:
        report.skipped("tests/gpu", "pytest is not installed")
    else:
        run_tests(ROOT / "tests" / "gpu", ROOT / "tests" / "helpers", report)


def run_tests(folder: Path, helpers: Path, report: Report) -> None:
    """Run the tests of a folder with pytest alone: no settings, plug-ins or conftest of the repository's."""
    command = [sys.executable, "-m", "pytest", str(folder), "-v", "--tb=short", "--confcutdir", str(folder)]
    command += ["--rootdir", str(folder), "-c", "/dev/null", "-p", "no:cacheprovider"]
    command += ["-o", f"pythonpath={helpers} {ROOT}", "-o", "markers=gpu: needs an accelerator"]
    settings = os.environ | {"COLUMNS": "240", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # room for the reasons of skips
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as process:
        assert process.stdout is not None
        for test, outcome, reason in outcomes(_echoed(process.stdout)):
            if outcome == "SKIPPED":
                report.skipped(f"tests/gpu: {test}", reason or "skipped")
            else:
                report.holds(f"tests/gpu: {test}", outcome == "PASSED")
    report.holds("tests/gpu: all that ran passed", process.returncode == 0)


def outcomes(lines: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    """Test, outcome, and reason of a skip, out of what ``pytest -v`` prints."""
    for line in lines:
        if (found := _OUTCOME.match(line.rstrip())) is not None:
            yield found["test"].partition("::")[2], found["outcome"], found["reason"]


def _echoed(lines: Iterable[str]) -> Iterator[str]:
    """The lines, which go into the log of the part too."""
    for line in lines:
        sys.stdout.write(line)
        yield line
