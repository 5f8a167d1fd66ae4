"""Runs vLLM's own entry-point tests, unmodified, against ``rlserve serve``, and tells which pass.

    python tests/conformance/vllm_tests/run.py --vllm SOURCES --python VENV/bin/python --work FOLDER [FILE ...]

SOURCES is the unpacked source distribution of vLLM, the Python has vllm of the same version and what its tests import.
In FOLDER the stand-ins for models are made once. Tests find them in a hub's cache, and the program ``vllm`` on their
path is ``vllm_command.py``; so neither the tests nor their helpers are touched.

``--tables`` has the rows of earlier tables for files that are not run now, explained as ``selection.toml`` does today.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from recording import IN_PROCESS, read_selection, reason_for

HERE = Path(__file__).parent

REPOSITORY = HERE.parents[2]
SCOPE = ("tests/entrypoints/openai", "tests/entrypoints/serve", "tests/entrypoints/anthropic")
SCOPE += ("tests/entrypoints/tool_parsers", "tests/tool_use")
_FILE_TIMEOUT_S = 1500
_TEST_TIMEOUT_S = 240
_LINKED = ("tests", "examples")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """vLLM's tests, and what they are run with."""

    vllm: Path
    python: Path
    work: Path

    @property
    def files(self) -> list[str]:
        """All in scope, as paths below the sources."""
        found = [path for folder in SCOPE for path in (self.vllm / folder).rglob("test_*.py")]
        return sorted(str(path.relative_to(self.vllm)) for path in found)

    @property
    def version(self) -> str:
        """Of vLLM."""
        lines = (self.vllm / "PKG-INFO").read_text(encoding="utf-8").splitlines()
        return next(line.removeprefix("Version: ") for line in lines if line.startswith("Version: "))

    def starts_servers(self, file: str) -> bool:
        """Whether it, or a ``conftest.py`` above it, says so."""
        path = self.vllm / file
        above = [folder / "conftest.py" for folder in path.parents if folder.is_relative_to(self.vllm / "tests")]
        return any("RemoteOpenAIServer" in each.read_text() for each in (path, *above) if each.exists())

    def prepare(self) -> None:
        """Make what all files need, unless it is there."""
        root, programs, hub = self.work / "root", self.work / "bin", self.work / "hub"
        for folder in (root, programs):
            folder.mkdir(parents=True, exist_ok=True)
        for name in _LINKED:
            if not (root / name).exists():
                # Beside them lies the package's source, which must not come before the installed one.
                (root / name).symlink_to(self.vllm / name)
        program = programs / "vllm"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} {HERE / "vllm_command.py"} "$@"\n'
        )
        program.chmod(0o755)
        if not hub.exists():
            making = hub.with_name("hub.making")
            command = [sys.executable, str(HERE / "stand_ins.py"), str(self.vllm), str(making)]
            subprocess.run(command, check=True)
            making.rename(hub)

    def run(self, file: str) -> list[dict[str, Any]]:
        """What became of each test of a file."""
        report = self.work / "report.jsonl"
        report.unlink(missing_ok=True)
        command = [str(self.python), "-m", "pytest", "-p", "recording", "-q", "--no-header", file]
        command += ["--timeout", str(_TEST_TIMEOUT_S), "-p", "no:cacheprovider"]
        with (self.work / f"{file.replace('/', '.')}.log").open("w") as log:
            try:
                subprocess.run(
                    command,
                    cwd=self.work / "root",
                    env=self._environment(report),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=_FILE_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired:
                sys.stderr.write(f"{file}: given up after {_FILE_TIMEOUT_S} s\n")
        return [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []

    def _environment(self, report: Path) -> dict[str, str]:
        paths = [str(HERE), str(self.work / "root")]
        return {
            **os.environ,
            "PATH": f"{self.work / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(paths),
            "HF_HUB_CACHE": str(self.work / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_TARGET_DEVICE": "cpu",
            "RLSERVE_VLLM_REPORT": str(report),
        }


def summary(file: str, tests: Sequence[Mapping[str, Any]], explained: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table: numbers, and the failures with what explains them."""
    outcomes = [test["outcome"] for test in tests]
    failures = [
        {"test": test["name"].partition("::")[2], "explained": reason_for(test["name"], explained), "said": test["why"]}
        for test in tests
        if test["outcome"] == "failed"
    ]
    left_out: dict[str, int] = {}
    for test in tests:
        if test["outcome"] in ("left out", "skipped"):
            left_out[test["why"]] = left_out.get(test["why"], 0) + 1
    passed, failed = outcomes.count("passed"), outcomes.count("failed")
    return {
        "file": file,
        "run": passed + failed,
        "passed": passed,
        "failed": failed,
        "failures": failures,
        "left_out": [{"tests": count, "why": why} for why, count in left_out.items()],
    }


def rows(suite: Suite, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each file, those that are left out whole among them."""
    selection = read_selection()
    for file in files:
        reason = reason_for(file, selection["left_out_files"])
        if reason is None and not suite.starts_servers(file):
            reason = IN_PROCESS
        if reason is not None:
            yield {"file": file, "run": 0, "passed": 0, "failed": 0, "failures": [], "left_out": [{"why": reason}]}
        else:
            yield summary(file, suite.run(file), selection["explained"])


def earlier_rows(tables: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By file, those of later tables in the place of others'. Files that ran nothing are kept, too."""
    selection = read_selection()
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        for row in json.loads(table.read_text(encoding="utf-8"))["files"]:
            for failure in row["failures"]:
                failure["explained"] = reason_for(f"{row['file']}::{failure['test']}", selection["explained"])
            found[row["file"]] = row
    return found


def _write(table: Sequence[Mapping[str, Any]], file: Path, about: Mapping[str, str]) -> None:
    num_run, num_passed = sum(row["run"] for row in table), sum(row["passed"] for row in table)
    share = round(num_passed / max(num_run, 1), 4)
    content = {**about, "run": num_run, "passed": num_passed, "share": share, "files": table}
    content["left_out_files"] = read_selection()["left_out_files"]
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run them, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--tables", type=Path, nargs="*", default=[], help="earlier tables whose rows are kept")
    parser.add_argument("--about", default="", help="of the table: which machine, how busy")
    parser.add_argument("files", nargs="*", help="below the sources; all in scope if none is named")
    given = parser.parse_args()
    suite = Suite(vllm=given.vllm.resolve(), python=given.python.absolute(), work=given.work.resolve())
    suite.prepare()
    about = {"vllm": suite.version, "date": date.today().isoformat(), "machine": given.about}
    found = earlier_rows(given.tables)
    for row in rows(suite, given.files or ([] if given.tables else suite.files)):
        found[row["file"]] = row
        if given.json is not None:
            _write([found[file] for file in sorted(found)], given.json, about)  # what there is, if it is broken off
        if row["run"]:
            sys.stdout.write(f"{row['passed']:4} of {row['run']:4}  {row['file']}\n")
            sys.stdout.flush()
    table = [found[file] for file in sorted(found)]
    if given.json is not None:
        _write(table, given.json, about)
    num_run, num_passed = sum(row["run"] for row in table), sum(row["passed"] for row in table)
    sys.stdout.write(f"{num_passed:4} of {num_run:4}\n")


if __name__ == "__main__":
    main()
