"""Measure one GPU in one command, in under nine minutes.

python benchmarks/gpu.py --out DIR [--device cuda|cpu] [--only PART …] [--cache DIR]

Writes DIR/gpu.json (date, device, versions, checks), DIR/gpu.md (a table of the checks) and a log of each part; both
reports are rewritten after each part. Needs torch, triton, transformers, safetensors and NumPy, but no installation of
this package; the tests in tests/gpu run if pytest is installed. ``--device cpu`` runs everything with a tiny model to
exercise the harness; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if find_spec("rlserve") is None:
    sys.path.insert(0, str(ROOT))

from gpu_parts.base import Check, Part, Place, Report, read_checks  # noqa: E402
from gpu_parts.factory import PARTS  # noqa: E402
from machine import circumstances  # noqa: E402
from models import DEFAULT_CACHE  # noqa: E402

TOTAL_S = 520.0
"""Of all parts; what is written then takes a second."""
PACKAGES = ("torch", "triton", "flash-attn", "transformers", "safetensors", "numpy", "pytest")
LAST_LINES = 5
"""Of a part's log that are shown where it failed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a part ended."""

    part: str
    state: str
    """``done``, ``failed``, ``cut short`` or ``left out``."""
    wall_s: float
    reason: str | None = None
    checks: list[Check] = field(default_factory=list)


def run_part(part: Part, options: argparse.Namespace, most_s: float) -> Outcome:
    """Measure in a separate process, which is killed with all its children after ``most_s``."""
    found, log = options.out / f"{part.name}.found.json", options.out / f"{part.name}.log"
    found.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", part.name, "--out", str(options.out), "--device", options.device]
    command += ["--cache", str(options.cache), "--seconds", str(most_s)]
    state, wall_s = run_command(command, log, most_s)
    reason = None if state == "done" else " / ".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    checks = read_checks(found)
    found.unlink(missing_ok=True)
    return Outcome(part=part.name, state=state, wall_s=wall_s, reason=reason, checks=checks)


def run_command(command: Sequence[str], log: Path, most_s: float) -> tuple[str, float]:
    """Run a command with its output in ``log``; returns how it ended and the seconds it took."""
    start, state = time.monotonic(), "cut short"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            with suppress(subprocess.TimeoutExpired):
                state = "done" if process.wait(timeout=most_s) == 0 else "failed"
        finally:
            _end_group(process)  # also what it has left behind
    return state, time.monotonic() - start


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started."""
    with suppress(ProcessLookupError):  # all of it is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure_all(
    parts: Sequence[Part], total_s: float, measure: Callable[[Part, float], Outcome], write: Callable[..., None]
) -> list[Outcome]:
    """Measure one part after another while there is time, and write the reports after each."""
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + total_s
    for part in parts:
        rest_s = deadline - time.monotonic()
        if rest_s < part.least_s:
            reason = f"{rest_s:.0f} s are left, and it takes at least {part.least_s:.0f}"
            outcomes.append(Outcome(part=part.name, state="left out", wall_s=0.0, reason=reason))
        else:
            outcomes.append(measure(part, min(rest_s, part.most_s)))
        write(outcomes)
    return outcomes


def measure_here(name: str, place: Place, report: Report) -> None:
    """Measure a part in this process."""
    PARTS[name].measure(place, report)


def describe(device: str) -> dict[str, Any]:
    """Device, versions, date and commit."""
    return {**circumstances(), "device": _device(device), "versions": {name: _version(name) for name in PACKAGES}}


def _device(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"kind": "cpu"}
    asked = "name,memory.total,driver_version,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    except FileNotFoundError:
        told = []
    return {"kind": "cuda", "gpus": told}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def as_json(about: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The whole report; ``checks`` are those of all parts."""
    return {
        **about,
        "parts": [{key: value for key, value in asdict(one).items() if key != "checks"} for one in outcomes],
        "checks": [asdict(check) for outcome in outcomes for check in outcome.checks],
    }


def as_table(about: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """A row for each check, and one for each part that did not finish."""
    device = about["device"]
    lines = [f"# {', '.join(device.get('gpus', [])) or device['kind']}, {about['date']}, commit {about['commit']}\n"]
    lines += ["| part | what | value | bar | met |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        for check in outcome.checks:
            value = f"– ({check.reason})" if check.reason else _shown(check.value)
            met = {True: "yes", False: "**no**", None: ""}[check.met]
            lines.append(f"| {outcome.part} | {_cell(check.name)} | {_cell(value)} | {check.bar or ''} | {met} |")
        if outcome.state != "done":
            lines.append(f"| {outcome.part} | {outcome.state} | {_cell(outcome.reason or '')} | | |")
    return "\n".join([*lines, ""])


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; 1 if a part failed or a bar is missed."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part is not None:
        place = Place(device=options.device, cache=options.cache, deadline=time.monotonic() + options.seconds)
        measure_here(options.part, place, Report(path=options.out / f"{options.part}.found.json"))
        return 0
    about, start = describe(options.device), time.monotonic()

    def write(outcomes: Sequence[Outcome]) -> None:
        content = as_json(about | {"wall_s": time.monotonic() - start}, outcomes)
        (options.out / "gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (options.out / "gpu.md").write_text(as_table(about, outcomes), encoding="utf-8")
        print(f"{outcomes[-1].part}: {outcomes[-1].state}, {outcomes[-1].wall_s:.0f} s", flush=True)

    parts = [PARTS[name] for name in options.only]
    outcomes = measure_all(parts, options.seconds, lambda part, most_s: run_part(part, options, most_s), write)
    print(as_table(about, outcomes))
    is_missed = any(check.met is False for outcome in outcomes for check in outcome.checks)
    return int(is_missed or any(outcome.state in ("failed", "cut short") for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the report goes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, metavar="DIR", help="where models are kept")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="of all parts together")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
