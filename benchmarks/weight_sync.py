"""Measure what a version of the weights costs from trainer to engine, whole and as what changed, beside a plain copy.

python benchmarks/weight_sync.py [--model NAME …] [--changed SHARE …] [--transport NAME …] [--rounds N] [--threads N]
                                 [--ray] [--busy] [--json FILE]
python benchmarks/weight_sync.py --real FOLDER [--steps N] [--json FILE]

All is done by the product's own sender, receiver and engine in this process; with ``--ray``, each version goes through
Ray's object store besides. Weights change as training changes them: by one or two units in the last place. On a machine
with other load, ``--busy`` counts the time that processors spend on this process, in place of that of the clock.
``--real`` reads what whole runs tell of their versions; they are kept in FOLDER. The exit code is 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import numpy as np
import ray
import torch
from checks import Check
from machine import circumstances
from models import DEFAULT_CACHE, SHAPES, ModelShape, model_folder
from weight_sync_runs import MAX_PAUSE_S, RUNS, measure_run, report_run, run_checks

from rlserve.engine import Engine, EngineConfig
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.weights.config import ObjectStoreConfig, SharedFolderConfig, WeightsConfig
from rlserve.weights.contents.whole_model import WholeModel
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
MAX_COPIES = 1.5
"""Of the whole sync of a whole version."""
TRANSPORTS = ("object_store", "shared_folder")
"""That need no group of processes."""
NUM_FIRST = 3
"""Rounds that are not counted."""

Weights = Mapping[str, torch.Tensor]
Clock = Callable[[], float]
"""Seconds."""


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
    """Comparison, coding and the sending end, beside the next step."""
    store_s: float
    """Into Ray's object store and out of it, if that is asked for."""
    receive_s: float
    """The receiving end, decoding and staging, beside the running model."""
    pause_s: float
    """The engine stands still for the swap."""
    sync_s: float
    """From the end of a step until the engine goes on with its weights: all of these."""
    copies: float
    """That, in plain copies of the whole, each made just before."""


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What a model's weights cost."""

    model: str
    dtype: str
    num_bytes: int
    """Of the whole."""
    copy_s: float
    """A plain copy of as many bytes, from memory to memory that is there: median over all rounds."""
    syncs: tuple[SyncResult, ...]


class Store:
    """Ray's object store on this machine."""

    def __init__(self) -> None:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)

    def carry(self, cargo: Any) -> Any:
        """Put in, as a worker's answer is, and taken out, as another worker takes it."""
        return ray.get(ray.put(cargo))


def measure(
    shape: ModelShape,
    dtype: Literal["float32", "bfloat16"],
    shares: Sequence[float],
    *,
    transports: Sequence[str],
    num_rounds: int,
    cache: Path,
    store: Store | None,
    clock: Clock,
) -> ModelResult:
    """All ways of a version."""
    config = EngineConfig(dtype=dtype, kv_cache_bytes=KV_CACHE_BYTES, max_model_len=MAX_MODEL_LEN)
    engine = Engine(model_folder(shape, cache), config)
    weights = {name: tensor.clone() for name, tensor in engine.named_weights()}
    num_bytes = sum(tensor.nbytes for tensor in weights.values())
    copy = PlainCopy(num_bytes, clock)
    syncs = []
    with TemporaryDirectory() as folder:
        for transport in (ObjectStoreConfig(), SharedFolderConfig(folder=str(Path(folder) / "weights"))):
            if transport.transport not in transports:
                continue
            carried_by = store if transport.transport == "object_store" else None
            for share in (None, *shares):
                syncs.append(measure_sync(engine, weights, transport, share, carried_by, copy, num_rounds=num_rounds))
    return ModelResult(
        model=shape.name, dtype=dtype, num_bytes=num_bytes, copy_s=median(copy.times_s), syncs=tuple(syncs)
    )


class PlainCopy:
    """Bytes that are copied to memory that is there, as quickly as PyTorch does it."""

    def __init__(self, num_bytes: int, clock: Clock) -> None:
        self.clock = clock
        self._source, self._target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
        self.times_s: list[float] = []

    def measure_s(self) -> float:
        """Copy once."""
        start = self.clock()
        self._target.copy_(self._source)
        self.times_s.append(self.clock() - start)
        return self.times_s[-1]


def measure_sync(
    engine: Engine,
    weights: Weights,
    transport: WeightsConfig,
    share: float | None,
    store: Store | None,
    copy: PlainCopy,
    *,
    num_rounds: int,
) -> SyncResult:
    """Versions from a sender into the engine, one after the other; the first ones, which take new memory, are not
    counted."""
    dtype = next(iter(weights.values())).dtype
    sender = Sender("trainer", create_sending_end(transport), WholeModel(dtype), keeps_last=True)
    receiver = Receiver(create_receiving_end(transport), keeps_last=True)
    times, base, chance = [], None, np.random.default_rng(0)
    for _ in range(num_rounds + NUM_FIRST):
        version = engine.weight_version + 1
        weights = changed(weights, 0.01 if share is None else share, chance)
        masters = {name: tensor.float() for name, tensor in weights.items()}
        copy_s = copy.measure_s()
        stamps = [copy.clock()]
        sender.take_snapshot(version, masters)
        stamps.append(copy.clock())
        cargo, part = sender.send(version, base, ())
        stamps.append(copy.clock())
        if store is not None:
            cargo = store.carry(cargo)
        stamps.append(copy.clock())
        offer = Offer(version=version, parts=(part,), base=part.base)
        staged = receiver.receive([offer], [cargo], engine.stage_weights)
        stamps.append(copy.clock())
        found = engine.swap_weights(version, staged)
        stamps.append(copy.clock())
        sync_s = stamps[-1] - stamps[0]
        times.append((*(end - start for start, end in pairwise(stamps)), sync_s, sync_s / copy_s))
        assert found == offer.fingerprint == fingerprint(weights.items()) == fingerprint(engine.named_weights())
        base = None if share is None else offer.holding
    sender.discard_all()
    medians = [median(column) for column in zip(*times[NUM_FIRST:], strict=True)]
    snapshot_s, send_s, store_s, receive_s, pause_s, sync_s, copies = medians
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
        store_s=store_s,
        receive_s=receive_s,
        pause_s=pause_s,
        sync_s=sync_s,
        copies=copies,
    )


def changed(weights: Weights, share: float, chance: np.random.Generator) -> dict[str, torch.Tensor]:
    """Some elements one or two units in the last place away; of all, or about this share, drawn by chance."""
    found = {}
    for name, tensor in weights.items():
        bits = tensor.clone().view(torch.int16 if tensor.element_size() == 2 else torch.int32).numpy().reshape(-1)
        where = slice(None) if share == 1.0 else chance.integers(0, len(bits), round(share * len(bits)))
        steps = np.array([-2, -1, -1, -1, 1, 1, 1, 2], dtype=bits.dtype)
        bits[where] += steps[chance.integers(0, len(steps), len(bits[where]), dtype=np.uint8)]
        found[name] = torch.from_numpy(bits).view(tensor.dtype).view(tensor.shape)
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
                name = f"{result.model}: whole sync of a whole version, in copies"
                found.append(Check(name=name, value=sync.copies, bar=MAX_COPIES, at_least=False))
                name = f"{result.model}: pause of the engine, s"
                found.append(Check(name=name, value=sync.pause_s, bar=MAX_PAUSE_S, at_least=False))
    return found


def report(result: ModelResult) -> None:
    """Print a model's table."""
    print(f"{result.model} {result.dtype}, {result.num_bytes / 1e6:,.1f} MB, plain copy {1e3 * result.copy_s:.2f} ms")
    print(
        "  transport      changed  sent as     MB sent  factor"
        "  snapshot    send   store  receive   pause    sync, ms  copies"
    )
    for sync in result.syncs:
        share = "anchor" if sync.changed is None else f"{100 * sync.changed:g} %"
        way = "delta" if sync.is_delta else "whole"
        print(
            f"  {sync.transport:13}  {share:>7}  {way:7}  {sync.num_bytes / 1e6:10,.3f}"
            f"  {result.num_bytes / sync.num_bytes:6.1f}  {1e3 * sync.snapshot_s:8.2f}  {1e3 * sync.send_s:6.1f}"
            f"  {1e3 * sync.store_s:6.1f}  {1e3 * sync.receive_s:7.1f}  {1e3 * sync.pause_s:6.2f}"
            f"  {1e3 * sync.sync_s:10.1f}  {sync.copies:6.1f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables and checks, and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks/weight_sync.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=list(SHAPES), default=["default", "6m", "75m"], metavar="NAME")
    parser.add_argument("--changed", nargs="+", type=float, default=[0.001, 0.01, 0.1, 1.0], metavar="SHARE")
    parser.add_argument("--transport", nargs="+", choices=TRANSPORTS, default=TRANSPORTS, metavar="NAME")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model-cache", type=Path, default=DEFAULT_CACHE, help="where the models are kept")
    parser.add_argument("--ray", action="store_true", help="put each version through Ray's object store too")
    parser.add_argument("--busy", action="store_true", help="count processor time: the machine has other load")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="whole runs in this folder, in place of all that")
    parser.add_argument("--steps", type=int, default=20, help="of each run of --real")
    options = parser.parse_args(arguments)
    if options.real:
        runs = [measure_run(name, options.real, num_steps=options.steps) for name in RUNS]
        for run in runs:
            report_run(run)
        content: dict[str, Any] = {"runs": [asdict(run) for run in runs]}
        return judge(run_checks(runs), options.json, content)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.busy else time.perf_counter
    store = Store() if options.ray else None
    results = []
    for name in options.model:
        results.append(
            measure(
                SHAPES[name],
                options.dtype,
                options.changed,
                transports=options.transport,
                num_rounds=options.rounds,
                cache=options.model_cache,
                store=store,
                clock=clock,
            )
        )
        report(results[-1])
    content = {
        "num_threads": options.threads,
        "is_processor_time": options.busy,
        "results": [asdict(result) for result in results],
    }
    return judge(checks(results), options.json, content)


def judge(found: Sequence[Check], path: Path | None, content: Mapping[str, Any]) -> int:
    """Print checks, and write all to ``path``; returns the exit code."""
    for check in found:
        sign = "at least" if check.at_least else "at most"
        print(f"{'met   ' if check.met else 'MISSED'}  {check.name}: {check.value:.3g}, {sign} {check.bar:g}")
    if path:
        whole = {**circumstances(), "torch": torch.__version__, **content, "checks": [check.line() for check in found]}
        path.write_text(json.dumps(whole, indent=1) + "\n")
    return 0 if all(check.met for check in found) else 1


if __name__ == "__main__":
    sys.exit(main())
