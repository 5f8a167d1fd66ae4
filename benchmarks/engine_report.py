"""What the measurements say: ratios per round, a table for people, JSON for everything else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from engine_cases import Case
from engine_rounds import PeerResult
from machine import circumstances
from peers.factory import OURS
from rich.table import Table

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """All peers on one case."""

    case: Case
    peers: list[PeerResult]
    load_average: float
    """Load of the machine in the minute before the case: what else ran on it."""


def ratios(ours: PeerResult, peer: PeerResult) -> list[float]:
    """Our tokens per second over the peer's, in each round that both have."""
    return [
        our_round.tokens_per_s / peer_round.tokens_per_s
        for our_round, peer_round in zip(ours.rounds, peer.rounds, strict=False)
    ]


def cpu_ratios(ours: PeerResult, peer: PeerResult) -> list[float]:
    """The same of tokens per second of processor time."""
    return [
        our_round.tokens_per_cpu_s / peer_round.tokens_per_cpu_s
        for our_round, peer_round in zip(ours.rounds, peer.rounds, strict=False)
    ]


def table(results: Sequence[CaseResult]) -> Table:
    """One row a peer and case. Numbers are medians over the rounds."""
    view = Table(title="Useful output tokens per second", caption=_CAPTION)
    for heading in ("case", "peer"):
        view.add_column(heading, no_wrap=True)
    for heading in (
        "tokens/s",
        "ours ÷ peer",
        "each round",
        "tokens/CPU s",
        "ours ÷ peer",
        "RSS, MiB",
        "first token, s",
    ):
        view.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        ours = next(peer for peer in result.peers if peer.peer == OURS)
        for position, peer in enumerate(result.peers):
            view.add_row(
                result.case.name if position == 0 else "", *_cells(ours, peer), end_section=peer is result.peers[-1]
            )
    return view


_NUMBERS = ("tokens/s", "ours ÷ peer", "each round", "tokens/CPU s", "ours ÷ peer", "RSS, MiB", "first token, s")
_CAPTION = "RSS: peak. First token: mean / median over the requests of a round, all submitted at its start."


def _cells(ours: PeerResult, peer: PeerResult) -> list[str]:
    if not peer.rounds:
        return [peer.peer, "missing", *[""] * (len(_NUMBERS) - 1)]
    compared, cpu_compared = (ratios(ours, peer), cpu_ratios(ours, peer)) if peer is not ours else ([], [])
    first_token = _first_token(peer)
    return [
        peer.peer,
        f"{median(measurement.tokens_per_s for measurement in peer.rounds):,.0f}",
        f"{median(compared):.2f}" if compared else "",
        " ".join(f"{ratio:.2f}" for ratio in compared),
        f"{median(measurement.tokens_per_cpu_s for measurement in peer.rounds):,.0f}",
        f"{median(cpu_compared):.2f}" if cpu_compared else "",
        f"{peer.peak_rss_bytes / _MIB:,.0f}",
        f"{first_token['mean_s']:.2f} / {first_token['median_s']:.2f}" if first_token else "unknown",
    ]


def report(results: Sequence[CaseResult], *, num_threads: int) -> dict[str, Any]:
    """Everything that was measured, ready for JSON."""
    return {
        **circumstances(),
        "num_threads": num_threads,
        "max_cpu_isa": os.environ.get("RLSERVE_MAX_CPU_ISA"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "cases": [_case_report(result) for result in results],
    }


def _case_report(result: CaseResult) -> dict[str, Any]:
    ours = next(peer for peer in result.peers if peer.peer == OURS)
    return {
        "case": asdict(result.case),
        "load_average": result.load_average,
        "peers": [_peer_report(ours, peer) for peer in result.peers],
    }


def _peer_report(ours: PeerResult, peer: PeerResult) -> dict[str, Any]:
    compared, cpu_compared = ratios(ours, peer), cpu_ratios(ours, peer)
    return {
        "peer": peer.peer,
        "missing": peer.missing,
        "versions": peer.versions,
        "settings": peer.settings,
        "tokens_per_s": [measurement.tokens_per_s for measurement in peer.rounds],
        "tokens_per_cpu_s": [measurement.tokens_per_cpu_s for measurement in peer.rounds],
        "wall_s": [measurement.wall_s for measurement in peer.rounds],
        "num_output_tokens": [measurement.num_output_tokens for measurement in peer.rounds],
        "ratios_of_ours": compared,
        "median_ratio_of_ours": median(compared) if compared else None,
        "median_cpu_ratio_of_ours": median(cpu_compared) if cpu_compared else None,
        "peak_rss_bytes": peer.peak_rss_bytes,
        "first_token": _first_token(peer),
    }


def _first_token(peer: PeerResult) -> dict[str, float] | None:
    """Mean and median of the time to the first token in seconds, each the median of the rounds."""
    rounds = [measurement.first_token_s for measurement in peer.rounds if measurement.first_token_s]
    if not rounds:
        return None
    return {"mean_s": median(map(mean, rounds)), "median_s": median(map(median, rounds))}
