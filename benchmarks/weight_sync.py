"""Measure what a version of the weights costs from trainer to engine, whole and as what changed, beside a plain copy.

python benchmarks/weight_sync.py [--model NAME …] [--changed SHARE …] [--rounds N] [--threads N] [--json FILE]

All is done by the product's own sender, receiver and engine in this process; what Ray itself costs is not in it.
Weights change as training changes them: by one or two units in the last place. The exit code is 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import numpy as np
import torch
from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape, model_folder

from rlserve.engine import Engine, EngineConfig
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.weights.config import ObjectStoreConfig, SharedFolderConfig, WeightsConfig
from rlserve.weights.offer import Offer
from rlserve.weights.receiver import Receiver
from rlserve.weights.sender import Sender
from rlserve.weights.transports.factory import create_receiving_end, create_sending_end

KV_CACHE_BYTES = 2**26
MAX_MODEL_LEN = 256
INDEX_BYTES = 4
"""Of a plain index of a changed element."""
MIN_PLAIN_FACTOR, MIN_CODED_FACTOR = 30, 100
"""At one element in a hundred changed."""
MAX_PAUSE_S = 0.05
MAX_COPIES = 1.5
"""Of the whole sync of a whole version."""

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """Medians over the rounds."""

    transport: str
    changed: float | None
    """Share of the elements, each changed by one or two units in the last place; None: sent whole, as an anchor is."""
    is_delta: bool
    num_bytes: int
    """That travelled."""
    plain_factor: float
    """Times fewer bytes than the whole that an index and a value for each changed element would be."""
    snapshot_s: float
    """The copy from float32 to the engine's type that a trainer's step waits for."""
    send_s: float
    """Comparison, coding, checksum, fingerprint and the sending end, beside the next step."""
    receive_s: float
    """The receiving end, checks and decoding, beside the running model."""
    pause_s: float
    """The engine stands still: swap, and fingerprint of what is loaded."""

    @property
    def sync_s(self) -> float:
        """From the end of a step until the engine goes on with its weights."""
        return self.snapshot_s + self.send_s + self.receive_s + self.pause_s


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """Medians over the rounds."""

    model: str
    dtype: str
    num_bytes: int
    """Of the whole."""
    copy_s: float
    """``copy_`` of every tensor into another that is there."""
    swap_s: float
    """``load_weights`` of the same tensors, until the next step can be computed with them."""
    fingerprint_s: float
    """Reading back what is loaded, and adding it up."""
    syncs: tuple[SyncResult, ...]


def measure(
    shape: ModelShape, dtype: Literal["float32", "bfloat16"], shares: Sequence[float], *, num_rounds: int, cache: Path
) -> ModelResult:
    """Copy, swap and read back in turn; then all ways of a version."""
    config = EngineConfig(dtype=dtype, kv_cache_bytes=KV_CACHE_BYTES, max_model_len=MAX_MODEL_LEN)
    engine = Engine(model_folder(shape, cache), config)
    weights = {name: tensor.clone() for name, tensor in engine.named_weights()}
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    copy_s, swap_s, fingerprint_s = [], [], []
    for version in range(1, num_rounds + 1):
        start = time.perf_counter()
        for name, tensor in weights.items():
            copies[name].copy_(tensor)
        copied = time.perf_counter()
        engine.load_weights(version, weights)
        swapped = time.perf_counter()
        found = fingerprint(engine.named_weights())
        copy_s.append(copied - start)
        swap_s.append(swapped - copied)
        fingerprint_s.append(time.perf_counter() - swapped)
        assert found == fingerprint(weights.items())
    syncs = []
    with TemporaryDirectory() as folder:
        for transport in (ObjectStoreConfig(), SharedFolderConfig(folder=str(Path(folder) / "weights"))):
            for share in (None, *shares):
                syncs.append(measure_sync(engine, weights, transport, share, num_rounds=num_rounds))
    return ModelResult(
        model=shape.name,
        dtype=dtype,
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        copy_s=median(copy_s),
        swap_s=median(swap_s),
        fingerprint_s=median(fingerprint_s),
        syncs=tuple(syncs),
    )


def measure_sync(
    engine: Engine, weights: Weights, transport: WeightsConfig, share: float | None, *, num_rounds: int
) -> SyncResult:
    """Versions from a sender into the engine, one after the other; the first is not counted."""
    dtype = next(iter(weights.values())).dtype
    sender = Sender("trainer", create_sending_end(transport), dtype, keeps_last=True)
    receiver = Receiver(create_receiving_end(transport), keeps_last=True)
    times, base, chance = [], None, np.random.default_rng(0)
    for _ in range(num_rounds + 1):
        version = engine.weight_version + 1
        weights = changed(weights, 0.01 if share is None else share, chance)
        masters = {name: tensor.float() for name, tensor in weights.items()}
        start = time.perf_counter()
        sender.take_snapshot(version, masters)
        copied = time.perf_counter()
        cargo, part = sender.send(version, base, ())
        sent = time.perf_counter()
        staged = receiver.receive([offer := Offer(version=version, parts=(part,))], [cargo], engine.stage_weights)
        received = time.perf_counter()
        found = engine.swap_weights(version, staged)
        times.append((copied - start, sent - copied, received - sent, time.perf_counter() - received))
        assert found == offer.fingerprint == fingerprint(weights.items())
        base = None if share is None else offer.holding
    sender.discard_all()
    snapshot_s, send_s, receive_s, pause_s = (median(column) for column in zip(*times[1:], strict=True))
    itemsize = dtype.itemsize
    num_plain_bytes = (part.changed_share or 0.0) * part.num_whole_bytes / itemsize * (INDEX_BYTES + itemsize)
    return SyncResult(
        transport=transport.transport,
        changed=share,
        is_delta=part.base is not None,
        num_bytes=part.num_bytes,
        plain_factor=part.num_whole_bytes / max(num_plain_bytes, 1),
        snapshot_s=snapshot_s,
        send_s=send_s,
        receive_s=receive_s,
        pause_s=pause_s,
    )


def changed(weights: Weights, share: float, chance: np.random.Generator) -> dict[str, torch.Tensor]:
    """Some elements one or two units in the last place away."""
    found = {}
    for name, tensor in weights.items():
        bits = tensor.clone().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
        where = torch.from_numpy(chance.random(bits.shape, dtype=np.float32) < share)
        steps = torch.tensor([-2, -1, -1, -1, 1, 1, 1, 2], dtype=bits.dtype)
        bits[where] += steps[torch.from_numpy(chance.integers(0, len(steps), int(where.sum())))]
        found[name] = bits.view(tensor.dtype)
    return found


def checks(results: Sequence[ModelResult]) -> list[Check]:
    """What is to be reached, with what was found."""
    found = []
    for result in results:
        for sync in result.syncs:
            if sync.transport != "object_store":
                continue
            if sync.changed == 0.01:
                name, factor = f"{result.model}: times fewer bytes at 1 % changed", result.num_bytes / sync.num_bytes
                plain = sync.plain_factor
                found.append(Check(name=f"{name}, plain", value=plain, bar=MIN_PLAIN_FACTOR))
                found.append(Check(name=f"{name}, coded", value=factor, bar=MIN_CODED_FACTOR))
            if sync.changed is None:
                copies = sync.sync_s / result.copy_s
                name = f"{result.model}: whole sync of a whole version, in copies"
                found.append(Check(name=name, value=copies, bar=MAX_COPIES, at_least=False))
            if result.model == "default" and sync.changed is None:
                name = "default: pause of the engine, s"
                found.append(Check(name=name, value=sync.pause_s, bar=MAX_PAUSE_S, at_least=False))
    return found


def report(result: ModelResult) -> None:
    """Print a model's table."""
    print(
        f"{result.model} {result.dtype}, {result.num_bytes / 1e6:,.1f} MB, in ms: copy {1e3 * result.copy_s:.2f}, swap "
        f"{1e3 * result.swap_s:.2f}, fingerprint of what is loaded {1e3 * result.fingerprint_s:.2f}"
    )
    print("  transport      changed  sent as     MB sent  factor  snapshot    send  receive   pause    sync  copies")
    for sync in result.syncs:
        share = "anchor" if sync.changed is None else f"{100 * sync.changed:g} %"
        way = "delta" if sync.is_delta else "whole"
        print(
            f"  {sync.transport:13}  {share:>7}  {way:7}  {sync.num_bytes / 1e6:10,.3f}"
            f"  {result.num_bytes / sync.num_bytes:6.1f}  {1e3 * sync.snapshot_s:8.2f}  {1e3 * sync.send_s:6.1f}"
            f"  {1e3 * sync.receive_s:7.1f}  {1e3 * sync.pause_s:6.1f}  {1e3 * sync.sync_s:6.1f}"
            f"  {sync.sync_s / result.copy_s:6.1f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables and checks, and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks/weight_sync.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=["default", "6m", "75m"], metavar="NAME")
    parser.add_argument("--changed", nargs="+", type=float, default=[0.001, 0.01, 0.1, 1.0], metavar="SHARE")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = []
    for name in options.model:
        results.append(
            measure(SHAPES[name], options.dtype, options.changed, num_rounds=options.rounds, cache=options.model_cache)
        )
        report(results[-1])
    found = checks(results)
    for check in found:
        sign = "at least" if check.at_least else "at most"
        print(f"{'met   ' if check.met else 'MISSED'}  {check.name}: {check.value:.3g}, {sign} {check.bar:g}")
    if options.json:
        content = {**circumstances(), "num_threads": options.threads, "torch": torch.__version__}
        content["results"] = [asdict(result) for result in results]
        content["checks"] = [check.line() for check in found]
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(check.met for check in found) else 1


if __name__ == "__main__":
    sys.exit(main())
