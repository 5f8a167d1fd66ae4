"""The options of ``rlserve bench``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlserve.cli.numbers import at_least_one, at_least_zero, not_negative, positive

WORKLOADS = ("random", "prefix", "conversation", "jsonl", "trace")
ENDPOINTS = ("completions", "chat")
_EXAMPLES = """\
examples:
  rlserve bench http://127.0.0.1:8000
  rlserve bench http://127.0.0.1:8000 --concurrency 1,4,16,64 --png sweep.png
  rlserve bench http://127.0.0.1:8000 --rate 1,2,4,8 --num-requests 300 --goodput ttft:200 tpot:20
  rlserve bench http://127.0.0.1:8000 --workload conversation --turns 2..6 --think 1 --concurrency 32 --duration 120
  rlserve bench http://127.0.0.1:8000 --workload trace --file mooncake.jsonl --speed 2
  rlserve bench https://models.example.com --api-key-env KEY --model NAME --endpoint chat --json result.json

lengths:  512 fixed   128..1024 uniform   normal:512,64 mean and deviation   lognormal:512,0.8,4096 median, deviation of
          the logarithm, longest
"""


def bench_parser() -> argparse.ArgumentParser:
    """All options; what they mean together is checked by :mod:`rlserve.cli.bench.settings`."""
    parser = argparse.ArgumentParser(
        prog="rlserve bench",
        usage="rlserve bench URL [options]",
        description="Put any OpenAI-compatible server under load and measure time to first token, time per output "
        "token, latencies, throughput and goodput. Exit code 1 if a request failed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="of the server, with or without /v1")
    _add_requests(parser.add_argument_group("requests"))
    _add_workload(parser.add_argument_group("workload"))
    _add_load(parser.add_argument_group("load"))
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="NAME", help="the server's only model unless given")
    group.add_argument(
        "--endpoint", choices=ENDPOINTS, help="chat for conversations and messages, else completions, unless given"
    )
    group.add_argument("--no-stream", action="store_true", help="ask for whole answers: there is no TTFT then")
    group.add_argument("--api-key-env", metavar="NAME", help="environment variable with the key")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key")
    group.add_argument("--timeout", type=positive, default=600.0, metavar="S", help="for a whole request (600)")
    group.add_argument("--body", default="{}", metavar="JSON", help="fields for every request: '{\"temperature\": 0}'")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--workload", choices=WORKLOADS, default="random", help="what is asked (random)")
    group.add_argument("--input-tokens", default="512", metavar="LENGTHS", help="that a prompt, or turn, adds (512)")
    group.add_argument("--output-tokens", default="128", metavar="LENGTHS", help="of an answer (128)")
    group.add_argument("--num-prefixes", type=at_least_one, default=8, metavar="N", help="prefix: how many (8)")
    group.add_argument(
        "--prefix-tokens", type=at_least_one, default=1024, metavar="N", help="prefix: of each, before input-tokens"
    )
    group.add_argument("--turns", default="4", metavar="LENGTHS", help="conversation: how many (4)")
    group.add_argument("--think", type=not_negative, default=0.0, metavar="S", help="conversation: before each (0)")
    group.add_argument("--file", type=Path, metavar="FILE", help="jsonl, trace: what is read")
    group.add_argument("--speed", type=positive, default=1.0, metavar="X", help="trace: times as fast (1)")
    ends = group.add_mutually_exclusive_group()
    ends.add_argument(
        "--ignore-eos", action="store_true", default=None, help="answers of full length, as is, but for jsonl"
    )
    ends.add_argument(
        "--no-ignore-eos", action="store_false", dest="ignore_eos", help="end where the model ends; ask for no more"
    )
    group.add_argument("--tokenizer", type=Path, metavar="DIR", help="model folder: exact lengths, counted answers")
    group.add_argument("--token-ids", action="store_true", help="completions: prompts as token ids")
    group.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")


def _add_load(group: argparse._ArgumentGroup) -> None:
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("--concurrency", metavar="N[,N…]", help="closed loop: at any time so many (16)")
    kinds.add_argument("--rate", metavar="R[,R…]", help="open loop: Poisson arrivals a second; inf is all at once")
    group.add_argument(
        "--burstiness", type=positive, default=1.0, metavar="K", help="of arrivals: gamma shape, below 1 is burstier"
    )
    group.add_argument(
        "--num-requests", type=at_least_one, metavar="N", help="conversations, if of several turns (100, or the file)"
    )
    group.add_argument("--duration", type=positive, metavar="S", help="begin none later; those under way go on")
    group.add_argument("--warm-up", type=at_least_zero, default=1, metavar="N", help="requests before, not counted (1)")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="count requests that meet deadlines: ttft:200 tpot:20 e2el:5000",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="write everything there; - is standard output")
    group.add_argument("--png", type=Path, metavar="FILE", help="draw it (png, svg or pdf)")
