"""The numbers of runs on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlserve.bench.results.goodput import DEADLINES
from rlserve.bench.results.record import TokenSource
from rlserve.bench.results.statistics import Distribution
from rlserve.bench.results.summary import Summary

_COUNTED = {
    TokenSource.USAGE: "as the server's usage says",
    TokenSource.TOKENIZER: "counted by the tokenizer",
    TokenSource.CHUNKS: "pieces of the stream, which may have several tokens each",
    TokenSource.UNKNOWN: "not known: not streamed, no usage, no tokenizer",
}


def run_tables(summary: Summary) -> RenderableType:
    """One run in full."""
    parts: list[RenderableType] = [_latencies(summary), Text(), _rates(summary)]
    if summary.failures:
        parts += [Text(), _failures(summary)]
    parts += [Text(), *_remarks(summary)]
    return Group(*parts)


def sweep_table(summaries: Sequence[Summary]) -> Table:
    """A row a run."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    headings = ["load", "requests/s", "output tokens/s", "TTFT ms", "p99", "TPOT ms", "p99", "latency ms", "p99"]
    has_goodput = any(summary.goodput for summary in summaries)
    for heading in [*headings, *(["good/s"] if has_goodput else []), "failed"]:
        table.add_column(heading, justify="left" if heading == "load" else "right", no_wrap=True)
    for summary in summaries:
        cells = [summary.load, f"{summary.requests_per_s:,.2f}", f"{summary.output_tokens_per_s:,.0f}"]
        for times_s in (summary.ttft_s, summary.tpot_s, summary.latency_s):
            cells += ["-", "-"] if times_s is None else [_ms(times_s.median), _ms(times_s.p99)]
        if has_goodput:
            cells.append("-" if summary.goodput is None else f"{summary.goodput.requests_per_s:,.2f}")
        table.add_row(*cells, Text(str(summary.num_failed), "red" if summary.num_failed else ""))
    return table


def _latencies(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("ms", "mean", "median", "p90", "p95", "p99", "max"):
        table.add_column(heading, justify="left" if heading == "ms" else "right", no_wrap=True)
    rows: list[tuple[str, Distribution | None]] = [
        ("TTFT: time to first token", summary.ttft_s),
        ("TPOT: time per output token after it", summary.tpot_s),
        ("ITL: gaps between pieces of a stream", summary.itl_s),
        ("end-to-end latency", summary.latency_s),
    ]
    for name, found in rows:
        if found is not None:
            numbers = (found.mean, found.median, found.p90, found.p95, found.p99, found.maximum)
            table.add_row(name, *map(_ms, numbers))
    return table


def _rates(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 3))
    for _ in range(2):
        table.add_column(justify="left")
        table.add_column(justify="right", style="bold")
    cached = f" ({summary.num_cached_tokens / max(summary.num_input_tokens, 1):.0%} cached)"
    table.add_row("answered", f"{summary.num_answered:,}", "requests/s", f"{summary.requests_per_s:,.2f}")
    table.add_row(
        "failed",
        Text(f"{summary.num_failed:,}", "red" if summary.num_failed else ""),
        "output tokens/s",
        f"{summary.output_tokens_per_s:,.1f}",
    )
    table.add_row(
        "input tokens" + (cached if summary.num_cached_tokens else ""),
        f"{summary.num_input_tokens:,}",
        "input tokens/s",
        f"{summary.input_tokens_per_s:,.1f}",
    )
    table.add_row(
        "output tokens", f"{summary.num_output_tokens:,}", "in flight, on average", f"{summary.mean_in_flight:,.1f}"
    )
    table.add_row("took", f"{summary.duration_s:,.1f} s", *_goodput_cells(summary))
    return table


def _goodput_cells(summary: Summary) -> tuple[str, str]:
    if summary.goodput is None:
        return "", ""
    return "goodput, requests/s", f"{summary.goodput.requests_per_s:,.2f} ({summary.goodput.share:.0%})"


def _failures(summary: Summary) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("failures", justify="right")
    table.add_column("kind", no_wrap=True)
    table.add_column("for example", overflow="fold")
    for kind, failures in summary.failures.items():
        table.add_row(Text(f"{failures.number:,}", "red"), Text(kind), Text(failures.example, "dim"))
    return table


def _remarks(summary: Summary) -> list[Text]:
    """How tokens were counted, which deadlines were missed, and whether the client was the limit."""
    remarks = []
    if summary.token_sources:
        counted = "; ".join(
            f"{_COUNTED[TokenSource(source)]} ({number:,} answers)" for source, number in summary.token_sources.items()
        )
        remarks.append(Text(f"output tokens: {counted}", "dim"))
    if summary.tokens_per_chunk is not None and summary.tokens_per_chunk > 1.05:
        remarks.append(Text(f"pieces had {summary.tokens_per_chunk:.2f} tokens each: ITL is of pieces", "dim"))
    if summary.goodput is not None:
        for name, limit in summary.goodput.deadlines_ms.items():
            number = summary.goodput.num_late[name]
            remarks.append(Text(f"{DEADLINES[name]} above {limit:g} ms: {number:,} answered requests", "dim"))
    lag, late = summary.client.lag_s, summary.client.late_s
    lag_text = "" if lag is None else f", event loop late by {1000 * lag.median:.2f} ms (p99 {1000 * lag.p99:.1f})"
    late_text = (
        "" if late is None else f", requests sent late by {1000 * late.median:.2f} ms (p99 {1000 * late.p99:.1f})"
    )
    share = f"client: {summary.client.processor_share:.0%} of a processor"
    remarks.append(Text(f"{share}{lag_text}{late_text}", "dim"))
    remarks += [Text(f"{warning}: take these numbers as bounds", "yellow") for warning in summary.warnings]
    return remarks


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return (
        f"{milliseconds:,.0f}"
        if milliseconds >= 1000
        else f"{milliseconds:,.1f}"
        if milliseconds >= 10
        else f"{milliseconds:.2f}"
    )
