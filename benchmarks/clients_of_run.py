"""What becomes of clients' streams while the run that they talk to learns: weights are swapped, a slot moves.

python benchmarks/clients_of_run.py [--num-streams 100] [--num-versions 60] [--json FILE]

A run of the built-in task on three CPU slots has its server in front of two replicas. So many streams are kept open,
one answer after the other, until so many versions were published; half-way a replica moves to training and comes back.
Each answer must have all its tokens once, by weights that never get older and that were published.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import openai
from checks import Check
from launches import ROOT
from machine import circumstances

NUM_TOKENS = 200
MAX_PAUSE_S = 0.05
_SETTINGS = (
    "num_steps=100000",
    "pool.slots=[{type: cpu, count: 3}]",
    "pool.num_initial_rollout=2",
    "manager=static",
    "rollout.server.enabled=true",
    "rollout.server.max_share=0.5",
    "rollout.engine.max_num_sequences=256",
    "tracking=off",
    "tracking.report=false",
    "checkpoint.every_steps=0",
)
_START_S = 300.0


@dataclass
class Streams:
    """What became of them."""

    versions: list[list[int]] = field(default_factory=list)
    """Of the tokens of each answer."""
    errors: list[str] = field(default_factory=list)
    """Of answers that were broken, or not what they must be."""


def main() -> int:
    """Measure, print, and write what ``--json`` asks for; 1 where a bar is missed."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as place, running(Path(place)) as folder:
        start_s, first = time.monotonic(), newest_version(folder)
        streams = asyncio.run(talk(folder, options.num_streams, first + options.num_versions))
        duration_s = time.monotonic() - start_s
        taken = [event for event in weights(folder) if event["version"] > first]
        published = {event["version"] for event in weights(folder) if event["slot_id"] is None}
    pauses_s = [event["pause_s"] for event in taken if event["slot_id"] is not None]
    num_unknown = sum(not set(versions) <= published for versions in streams.versions)
    num_several = sum(len(set(versions)) > 1 for versions in streams.versions)
    print(
        f"{len(streams.versions)} answers on {options.num_streams} streams, {num_several} by several versions, "
        f"{len(streams.versions) * NUM_TOKENS / duration_s:.0f} tokens/s; {len(pauses_s)} swaps of weights, pauses "
        f"{1e3 * median(pauses_s):.2f} ms in the median and {1e3 * max(pauses_s):.2f} ms at most"
    )
    name = f"{options.num_streams} streams of a run during {len(pauses_s)} swaps of weights and two moves"
    checks = [
        Check(name=f"{name}: broken", value=len(streams.errors), bar=0, at_least=False),
        Check(name=f"{name}: answers by versions never published", value=num_unknown, bar=0, at_least=False),
        Check(name=f"{name}: answers by several versions", value=num_several, bar=1),
        Check(name=f"{name}: longest pause of an engine, s", value=max(pauses_s), bar=MAX_PAUSE_S, at_least=False),
    ]
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.4f}  {check.name}")
    for error in streams.errors[:3]:
        print(error)
    if options.json is not None:
        content = {
            **circumstances(),
            "load_average": os.getloadavg()[0],
            "num_answers": len(streams.versions),
            "tokens_per_s": len(streams.versions) * NUM_TOKENS / duration_s,
            "median_pause_s": median(pauses_s),
            "checks": [check.line() for check in checks],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(check.met for check in checks) else 1


@contextmanager
def running(place: Path) -> Iterator[Path]:
    """The folder of a run that has begun to train and listens; the run ends with the context."""
    folder = place / "run"
    command = [sys.executable, "-m", "rlserve", "launch", "conf/rlhf.yaml", *_SETTINGS]
    with (place / "output").open("w") as output:
        process = subprocess.Popen(
            [*command, "name=run", f"output_dir={place}"], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _START_S
        while not (folder / "server.json").exists() or newest_version(folder) < 1:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the run did not begin:\n{(place / 'output').read_text()[-2000:]}")
            time.sleep(0.2)
        yield folder
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def weights(folder: Path) -> list[dict[str, Any]]:
    """Versions that were published and taken."""
    path = folder / "events.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == "weights"]


def newest_version(folder: Path) -> int:
    """Of the weights."""
    return max((event["version"] for event in weights(folder)), default=0)


async def talk(folder: Path, num_streams: int, last_version: int) -> Streams:
    """Keep streams open until a version is there, and move a slot meanwhile."""
    address = json.loads((folder / "server.json").read_text(encoding="utf-8"))["address"]
    client = openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=300)
    found, ending = Streams(), asyncio.Event()

    async def stream(number: int) -> None:
        while not ending.is_set():
            try:
                found.versions.append(await _answer(client, f"{10 + number % 90}+{10 + number % 80}="))
            except (openai.OpenAIError, ValueError) as error:
                found.errors.append(f"{type(error).__name__}: {error}")

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_streams):
            tasks.create_task(stream(number))
        while newest_version(folder) < last_version // 2:
            await asyncio.sleep(0.2)
        slot_id = next(event["slot_id"] for event in weights(folder) if event["slot_id"] is not None)
        for role in ("train", "rollout"):
            command = [sys.executable, "-m", "rlserve", "move", str(folder), slot_id, role]
            await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)
        while newest_version(folder) < last_version:
            await asyncio.sleep(0.2)
        ending.set()
    return found


async def _answer(client: openai.AsyncOpenAI, prompt: str) -> list[int]:
    """The version of each token of an answer; ``ValueError`` where it is not what it must be."""
    versions: list[int] = []
    token_ids: list[int] = []
    finish_reason: str | None = None
    chunks = await client.completions.create(
        model="builtin:addition",
        prompt=prompt,
        max_tokens=NUM_TOKENS,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True, "return_weight_versions": True},
    )
    async for chunk in chunks:
        for choice in chunk.choices:
            extra = choice.model_extra or {}
            for version, begin, end in extra["weight_versions"]:
                if begin != len(versions):
                    raise ValueError(f"a token is missing or told twice: {begin} is not {len(versions)}")
                versions += [version] * (end - begin)
            token_ids += extra["token_ids"]
            finish_reason = choice.finish_reason or finish_reason
    if finish_reason != "length" or not len(token_ids) == len(versions) == NUM_TOKENS or versions != sorted(versions):
        raise ValueError(f"{len(token_ids)} tokens by versions {sorted(set(versions))}, ended by {finish_reason}")
    return versions


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/clients_of_run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--num-streams", type=int, default=100, help="kept open (100)")
    parser.add_argument("--num-versions", type=int, default=60, help="published meanwhile (60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
