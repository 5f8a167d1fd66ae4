"""What 100 streams of a server see when one of its two replicas is killed, and when its weights are swapped.

python benchmarks/serving_faults.py [--num-streams 100] [--num-swaps 10] [--json FILE]

``kill``: SIGKILL once every stream has a token; every answer must be, token for token, that of an engine in this
process, greedy ones and drawn ones. ``swap``: new weights once every stream has a token, again and again; no stream may
break, and each has the old version up to some token and the new one from it on. The pause is what the server tells of
its engines; the longest gap between two pieces of a stream, beside that of the same streams without a swap, is what
clients feel.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import argparse
import asyncio
import json
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape
from serving_parts.server import Server, running_server, served_folder
from serving_parts.told_streams import ToldStream, tell_all

from rlserve.distributed.addresses import free_port
from rlserve.engine import Engine, EngineConfig, Request, SamplingParams

NUM_TOKENS = 300
MAX_PAUSE_S = 0.05
PROMPT = (5, 6, 7, 8)
_KEY = "a-key-of-operators"
_MANY = ("degradation.refuse_at=100", "degradation.shorten_at=100", "num_replicas=2")


_GAPS_NOTE = (
    "pauses_s: for so long an engine made no step, by its own clock; the bar is theirs. longest_gaps_s: between two "
    "pieces of a stream, the longest of all streams, as their clients see it. It has no bar: clients, front and "
    "engines share two cores, so it is not known to be the swap's; calm_longest_gap_s is of the streams without one"
)


@dataclass
class SwapTimes:
    """What a swap takes, seen from both sides."""

    pauses_s: list[float] = field(default_factory=list)
    """Of each swap, the longest of its engines."""
    longest_gaps_s: list[float] = field(default_factory=list)
    """Of each swap."""
    calm_longest_gap_s: float = 0.0


def main() -> int:
    """Measure, print, and write what ``--json`` asks for; 1 where a bar is missed."""
    options = _parser().parse_args()
    shape, cache = SHAPES["6m"], options.model_cache
    swaps = SwapTimes()
    checks = [
        *kill(shape, cache, options.num_streams),
        *swap(shape, cache, options.num_streams, options.num_swaps, swaps),
    ]
    for check in checks:
        print(f"{'ok ' if check.met else 'BAD'}  {check.value:.4f}  {check.name}")
    if options.json is not None:
        content = {**circumstances(), "model": "6m", "load_average": os.getloadavg()[0]}
        content["checks"] = [each.line() for each in checks]
        content["swaps"] = {"note": _GAPS_NOTE, **asdict(swaps)}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if all(check.met for check in checks) else 1


def kill(shape: ModelShape, cache: Path, num_streams: int) -> Iterator[Check]:
    """Kill a replica under the streams."""
    bodies = [_body(seed, temperature=float(seed % 2)) for seed in range(num_streams)]
    with running_server(shape, cache, *_MANY) as server:
        _wait_for_replicas(server)
        victim = server.replicas[0]
        streams = asyncio.run(tell_all(server.host, server.port, bodies, lambda: victim.send_signal(signal.SIGKILL)))
        num_lost = _metric(server, "rlserve:lost_replicas_total")
        num_failovers = _metric(server, "rlserve:failovers_total")
    expected = _generate(served_folder(shape, cache), bodies)
    num_wrong = sum(stream.token_ids != tokens for stream, tokens in zip(streams, expected, strict=True))
    name = f"{num_streams} streams, a replica killed"
    yield Check(name=f"{name}: streams that broke off", value=_num_broken(streams), bar=0, at_least=False)
    yield Check(name=f"{name}: answers that are not the engine's", value=num_wrong, bar=0, at_least=False)
    yield Check(name=f"{name}: replicas lost", value=num_lost, bar=1)
    yield Check(name=f"{name}: answers that went on elsewhere", value=num_failovers, bar=1)


def swap(shape: ModelShape, cache: Path, num_streams: int, num_swaps: int, times: SwapTimes) -> Iterator[Check]:
    """Swap the weights under the streams, between two models."""
    bodies = [_body(seed, temperature=1.0) for seed in range(num_streams)]
    port = free_port()
    os.environ["RLSERVE_ADMIN_KEYS"] = _KEY
    num_broken = num_wrong = num_mixed = 0
    with (
        tempfile.TemporaryDirectory() as place,
        running_server(shape, cache, *_MANY, f"admin.port={port}") as server,
    ):
        folders = [served_folder(shape, cache), _other_weights(shape, cache, Path(place))]
        _wait_for_replicas(server)
        calm = asyncio.run(tell_all(server.host, server.port, bodies, lambda: None))
        times.calm_longest_gap_s = max(stream.longest_gap_s for stream in calm)
        for number in range(1, num_swaps + 1):
            taking = partial(_take, port, folders[number % 2], times.pauses_s)
            streams = asyncio.run(tell_all(server.host, server.port, bodies, taking))
            times.longest_gaps_s.append(max(stream.longest_gap_s for stream in streams))
            num_broken += _num_broken(streams)
            num_mixed += sum(len(set(stream.versions)) == 2 for stream in streams)
            num_wrong += sum(
                stream.versions != sorted(stream.versions) or not {number - 1, number} >= set(stream.versions)
                for stream in streams
            )
    longest_s = max(times.pauses_s)
    print(
        f"{num_swaps} swaps: pauses {1e3 * median(times.pauses_s):.2f} ms in the median, {1e3 * longest_s:.2f} most; "
        f"longest gap of a stream {1e3 * median(times.longest_gaps_s):.0f} ms in the median of swaps, "
        f"{1e3 * times.calm_longest_gap_s:.0f} ms without one"
    )
    name = f"{num_streams} streams, {num_swaps} swaps of weights"
    yield Check(name=f"{name}: streams that broke off", value=num_broken, bar=0, at_least=False)
    yield Check(name=f"{name}: answers by wrong versions", value=num_wrong, bar=0, at_least=False)
    yield Check(name=f"{name}: answers by both versions", value=num_mixed, bar=1)
    yield Check(name=f"{name}: longest pause of an engine, s", value=longest_s, bar=MAX_PAUSE_S, at_least=False)


def _body(seed: int, *, temperature: float) -> dict[str, Any]:
    prompt = [*PROMPT, 10 + seed]
    return {"prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": seed, "temperature": temperature}


def _num_broken(streams: Sequence[ToldStream]) -> int:
    return sum(not stream.is_ended or len(stream.token_ids) != NUM_TOKENS for stream in streams)


def _generate(folder: Path, bodies: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    engine = Engine(folder, EngineConfig(device="cpu", deterministic=True))
    for index, body in enumerate(bodies):
        sampling = SamplingParams(
            max_tokens=NUM_TOKENS, ignore_eos=True, seed=body["seed"], temperature=body["temperature"]
        )
        assert engine.add(Request(id=str(index), prompt_token_ids=tuple(body["prompt"]), sampling=sampling))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    by_id = {output.request_id: list(output.samples[0].token_ids) for output in outputs}
    return [by_id[str(index)] for index in range(len(bodies))]


def _other_weights(shape: ModelShape, cache: Path, folder: Path) -> Path:
    """The same model with other random weights, in ``folder``."""
    import torch
    from safetensors.torch import load_file, save_file

    source = served_folder(shape, cache)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).symlink_to(path)
    torch.manual_seed(1)
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({name: tensor[torch.randperm(len(tensor))] for name, tensor in tensors.items()}, folder / path.name)
    return folder


def _take(port: int, folder: Path, pauses_s: list[float]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/admin/weights",
        data=json.dumps({"path": str(folder)}).encode(),
        headers={"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        pauses_s.append(json.load(answer)["pause_s"])


def _metric(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def _wait_for_replicas(server: Server) -> None:
    while _metric(server, "rlserve:ready_replicas") < 2:
        time.sleep(0.1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/serving_faults.py", description=__doc__.splitlines()[0])
    parser.add_argument("--num-streams", type=int, default=100)
    parser.add_argument("--num-swaps", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
