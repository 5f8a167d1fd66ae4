"""``rlserve bench``: load on any OpenAI-compatible server, and what it does under it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rlserve.cli.bench.parser import bench_parser
from rlserve.errors import UserError

if TYPE_CHECKING:
    from rlserve.bench.plan import BenchSettings, Plan
    from rlserve.bench.results.summary import Measurement, Summary

EXIT_FAILED_REQUESTS = 1
EXIT_INTERRUPTED = 130
_MIN_WIDTH = 110


def run(arguments: Sequence[str]) -> int:
    """Measure, print, and return 1 if any request failed."""
    from rlserve.bench.results.goodput import parse_deadlines
    from rlserve.cli.bench.settings import read_settings

    parsed = bench_parser().parse_args(arguments)
    deadlines_ms, settings = parse_deadlines(parsed.goodput), read_settings(parsed)
    console = Console(stderr=parsed.json == Path("-"))
    console.width = max(console.width, _MIN_WIDTH)
    plan, runs = asyncio.run(_measure(settings, deadlines_ms, console))
    _write_files(parsed, plan, runs)
    if any(measurement.is_interrupted for measurement, _ in runs):
        return EXIT_INTERRUPTED
    return EXIT_FAILED_REQUESTS if any(summary.num_failed for _, summary in runs) else 0


async def _measure(
    settings: BenchSettings, deadlines_ms: Mapping[str, float], console: Console
) -> tuple[Plan, list[tuple[Measurement, Summary]]]:
    """One run after the other; those after one that the user ended are left out."""
    from rlserve.bench.plan import make_plan
    from rlserve.bench.report.table import run_tables, sweep_table
    from rlserve.bench.results.summary import summarise
    from rlserve.bench.session import run_session
    from rlserve.cli.bench.progress import Progress

    plan = await make_plan(settings)
    console.print(_heading(plan, settings))
    runs: list[tuple[Measurement, Summary]] = []
    for session in plan.sessions:
        progress = Progress(session.load.name, session.num_conversations)
        with Live(progress, console=console, transient=True) if console.is_terminal else nullcontext():
            measurement = await run_session(session, progress)
        runs.append((measurement, summarise(measurement, deadlines_ms)))
        if len(plan.sessions) > 1:
            console.print(Text(f"\n{session.load.name}", "bold"))
        console.print(run_tables(runs[-1][1]))
        if measurement.is_interrupted:
            break
    if len(runs) > 1:
        console.print(Text(), sweep_table([summary for _, summary in runs]))
    return plan, runs


def _heading(plan: Plan, settings: BenchSettings) -> Text:
    """What is about to be measured, in a line."""
    streamed = "" if settings.is_streamed else ", not streamed"
    request = plan.settings
    return Text.assemble(
        (request.model, "bold"),
        f" at {settings.address.url}/v1{request.endpoint.path}{streamed}: {settings.workload.kind} workload, "
        f"{_load(plan)}; lengths of prompts {plan.how_lengths_are_met}",
    )


def _load(plan: Plan) -> str:
    """Of a sweep, the levels: ``concurrency 1, 4, 16``."""
    first, *others = (session.load for session in plan.sessions)
    return ", ".join([first.name, *(f"{load.level:g}" for load in others)])


def _write_files(parsed: argparse.Namespace, plan: Plan, runs: Sequence[tuple[Measurement, Summary]]) -> None:
    from rlserve.bench.report.data import benchmark_data

    if parsed.json is not None:
        _write(parsed.json, json.dumps(benchmark_data(_said(parsed, plan), runs), indent=1) + "\n")
    if parsed.png is not None:
        from rlserve.bench.report.png import write_png

        write_png(parsed.png, f"{plan.settings.model} at {parsed.url}: {parsed.workload} workload", runs)
        sys.stderr.write(f"{parsed.png}\n")


def _said(parsed: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The options, as they were typed; a key is not among them, only where it came from."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(parsed).items()}
    return {**options, "model": plan.settings.model, "endpoint": str(plan.settings.endpoint)}


def _write(path: Path, text: str) -> None:
    if path == Path("-"):
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    sys.stderr.write(f"{path}\n")
