"""From options to settings, checked."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlserve.bench.client.client import ServerAddress
from rlserve.bench.client.request import Endpoint
from rlserve.bench.lengths import parse_lengths
from rlserve.bench.load.base import Load
from rlserve.bench.load.closed_loop import ClosedLoop
from rlserve.bench.load.open_loop import OpenLoop
from rlserve.bench.plan import BenchSettings
from rlserve.bench.workloads.factory import WorkloadKind, WorkloadSettings
from rlserve.errors import UserError

DEFAULT_CONCURRENCY = "16"


def read_settings(parsed: argparse.Namespace) -> BenchSettings:
    """Of ``rlserve bench``.

    Raises:
        UserError: a value is none, or two do not go together.
    """
    workload = WorkloadSettings(
        kind=WorkloadKind(parsed.workload),
        input_tokens=parse_lengths(parsed.input_tokens),
        output_tokens=parse_lengths(parsed.output_tokens),
        num_prefixes=parsed.num_prefixes,
        prefix_tokens=parsed.prefix_tokens,
        num_turns=parse_lengths(parsed.turns),
        think_s=parsed.think,
        file=parsed.file,
        speed=parsed.speed,
        ignores_end=parsed.ignore_eos,
        seed=parsed.seed,
    )
    return BenchSettings(
        address=ServerAddress(url=base_url(parsed.url), api_key=_api_key(parsed), timeout_s=parsed.timeout),
        workload=workload,
        loads=_loads(parsed),
        model=parsed.model,
        endpoint=None if parsed.endpoint is None else Endpoint(parsed.endpoint),
        is_streamed=not parsed.no_stream,
        extra=_extra(parsed.body),
        tokenizer=parsed.tokenizer,
        uses_token_ids=parsed.token_ids,
        num_conversations=parsed.num_requests,
        duration_s=parsed.duration,
        num_warm_up=parsed.warm_up,
    )


def base_url(url: str) -> str:
    """Without ``/v1`` and without a slash at its end.

    Raises:
        UserError: it is no URL of a server.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"{url!r} is no URL of a server: write http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1")


def _api_key(parsed: argparse.Namespace) -> str | None:
    if parsed.api_key_env is not None and parsed.api_key_file is not None:
        raise UserError("--api-key-env and --api-key-file are two places for one key: name one")
    if parsed.api_key_env is not None:
        if not (key := os.environ.get(parsed.api_key_env, "").strip()):
            raise UserError(f"the environment variable {parsed.api_key_env} is empty or not set")
        return key
    return None if parsed.api_key_file is None else _key_in(parsed.api_key_file)


def _key_in(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not key:
        raise UserError(f"{path} is empty")
    return key


def _loads(parsed: argparse.Namespace) -> tuple[Load, ...]:
    """Those of a sweep; none where a trace has times of its own."""
    if parsed.rate is not None:
        rates = _numbers("--rate", parsed.rate, float)
        return tuple(
            OpenLoop(rate=rate, burstiness=parsed.burstiness, seed=parsed.seed + position)
            for position, rate in enumerate(rates)
        )
    if parsed.concurrency is None and parsed.workload == WorkloadKind.TRACE:
        return ()
    return tuple(ClosedLoop(n) for n in _numbers("--concurrency", parsed.concurrency or DEFAULT_CONCURRENCY, int))


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(number > 0 for number in numbers):
        raise UserError(f"{option} {text!r} must be numbers above 0, with commas between them")
    return numbers


def _extra(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"--body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"--body must be an object, got {text!r}")
    return found
